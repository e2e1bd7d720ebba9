"""`.yaml` files: DeePMD-kit's dictionary as text, arrays as nested lists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from dpa_core.errors import ModelFileError
from dpa_core.interchange.atomic import replaced
from dpa_core.interchange.bounded import DEEPEST
from dpa_core.interchange.content import AGAIN, Content

if TYPE_CHECKING:
    from dpa_core.model import Potential

_DTYPES = ("float64", "float32", "int64", "int32")
# Numbers that mean the same to Python and YAML 1.1, where 010 is 8 and 1:30 is 90.
_INTEGER, _FLOAT = re.compile(r"[-+]?(0|[1-9]\d*)"), re.compile(r"[-+]?\d+\.\d*([eE][-+]\d+)?")
_MOST_VALUES = 4_000_000
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def read(path: Path, name: str | None = None) -> Content:
    """Read a `.yaml` file.

    Raises
    ------
    ModelFileError
        If the file is damaged or holds what cannot be represented exactly.
    """
    from dpa_core.interchange.deepmd_dict import content_of, refuse_name

    refuse_name(path, name)
    raw = path.read_bytes()
    if b"@variables" not in raw:
        raise ModelFileError(f"{path}: not a model file: a text without '@variables'")
    try:
        data = _Builder().build(raw.decode("utf-8-sig"))
    except (yaml.YAMLError, ValueError, TypeError, KeyError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelFileError(f"{path}: damaged, cannot be read: {reason}; {AGAIN}") from error
    return content_of(data, path)


class _Builder:
    """Builds plain data and arrays from the events of a YAML text.

    PyYAML's own constructor recurses in C, follows aliases and tags, lets the last of two equal
    keys win and takes a hundred times the memory of the text.
    """

    def __init__(self) -> None:
        self._open: list[Any] = []
        self._keys: list[Any] = []
        self._inside: list[bool] = []
        self._result: Any = None
        self._words: dict[str, Any] = {}
        self._constructor = yaml.SafeLoader("")

    def build(self, text: str) -> Any:
        """Return what the only document of a text holds."""
        documents = 0
        for n, event in enumerate(yaml.parse(text, Loader=_Loader)):
            if n > _MOST_VALUES:
                raise ValueError(f"more than {_MOST_VALUES:,} values")
            if isinstance(event, yaml.ScalarEvent):
                self._check(event)
                plain = event.implicit[0]
                self._put(self._scalar(event.value) if plain else event.value)
            elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
                self._check(event)
                self._start({} if isinstance(event, yaml.MappingStartEvent) else [])
            elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
                self._end()
            elif isinstance(event, yaml.AliasEvent):
                raise ValueError("anchors and aliases (& and *) are not allowed in a model")
            documents += isinstance(event, yaml.DocumentStartEvent)
        if documents != 1:
            raise ValueError(f"{documents} documents, expected one")
        return self._result

    def _check(self, event: Any) -> None:
        if event.tag is not None:
            raise ValueError(f"tags are not allowed in a model ({event.tag[:80]})")
        if event.anchor is not None:
            raise ValueError("anchors and aliases (& and *) are not allowed in a model")

    def _scalar(self, text: str) -> Any:
        if _FLOAT.fullmatch(text):
            return float(text)
        if _INTEGER.fullmatch(text):
            return int(text)
        if text not in self._words:
            tag = self._constructor.resolve(yaml.ScalarNode, text, (True, False))
            node = yaml.ScalarNode(tag, text)
            self._words[text] = self._constructor.construct_object(node)
        return self._words[text]

    def _start(self, container: Any) -> None:
        if len(self._open) > DEEPEST:
            raise ValueError("nested too deeply")
        inside = bool(self._inside) and (self._inside[-1] or self._keys[-1] == "@variables")
        self._open.append(container)
        self._keys.append(_NONE)
        self._inside.append(inside)

    def _end(self) -> None:
        value, inside = self._open.pop(), self._inside.pop()
        self._keys.pop()
        self._put(_array(value) if inside and isinstance(value, dict) else value)

    def _put(self, value: Any) -> None:
        """Put a value into the container that is open, or keep it as a key."""
        if not self._open:
            self._result = value
        elif isinstance(self._open[-1], list):
            self._open[-1].append(value)
        elif self._keys[-1] is _NONE:
            if not isinstance(value, str | int) or value in self._open[-1]:
                raise ValueError(f"the key {str(value)[:40]!r} occurs twice or is no name")
            self._keys[-1] = value
        else:
            self._open[-1][self._keys[-1]] = value
            self._keys[-1] = _NONE


_NONE = object()


def _array(data: dict[Any, Any]) -> Any:
    """Return the array that a mapping inside `@variables` describes."""
    if not data.get("@is_variable"):
        return data
    if data.get("dtype") not in _DTYPES:
        raise ValueError(f"an array of {data.get('dtype')!r}; allowed: {', '.join(_DTYPES)}")
    with np.errstate(over="ignore"):  # inf is refused later
        return np.array(data["value"], dtype=data["dtype"])


def save(model: Potential, path: Path, provenance: dict[str, Any] | None = None) -> Path:
    """Write a `.yaml` file that DeePMD-kit 3.2 reads; numbers keep all their digits.

    Raises
    ------
    ModelFileError
        If DeePMD-kit has nothing that gives the same numbers.
    """
    from dpa_core.interchange.deepmd_write import file_dictionary

    data = file_dictionary(model, path, provenance)
    with replaced(path) as temporary:
        text = yaml.dump(_plain(data), Dumper=_Dumper, sort_keys=False)
        temporary.write_text(text, encoding="utf-8")
    return path


def _plain(data: Any) -> Any:
    if isinstance(data, np.ndarray):
        return {
            "@class": "np.ndarray",
            "@is_variable": True,
            "@version": 1,
            "dtype": data.dtype.name,
            "value": data.tolist(),
        }
    if isinstance(data, dict):
        return {k: _plain(v) for k, v in data.items()}
    if isinstance(data, list):
        return [_plain(v) for v in data]
    return data
