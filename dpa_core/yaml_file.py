"""YAML (and JSON, which YAML includes): reading what a person wrote, writing what one may read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dpa_core.errors import ConfigError


class _UniqueKeys(yaml.SafeLoader):
    """Safe loader; YAML forbids a key twice, PyYAML silently takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        seen: dict[Any, yaml.Node] = {}
        for key in own:
            name = self.construct_object(key, deep=True)
            if isinstance(name, str) and name in seen:
                raise yaml.constructor.ConstructorError(
                    f"key {name!r} is given a first time", seen[name].start_mark,
                    "and again here; remove one of the two", key.start_mark,
                )  # fmt: skip
            if isinstance(name, str):
                seen[name] = key
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """Return what a YAML or JSON file holds.

    Parameters
    ----------
    path
        The file, UTF-8.

    Raises
    ------
    ConfigError
        No such file, or not readable; a syntax error or a key given twice is named with its
        line.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            # the loader is a SafeLoader
            return yaml.load(stream, Loader=_UniqueKeys)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError, RecursionError) as error:
        raise ConfigError(f"{path}: not readable as YAML or JSON: {error}") from error


class _Readable(yaml.SafeDumper):
    """Safe dumper of its own, so that no other library changes how texts are written."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Readable.add_representer(str, _text)


def to_yaml(data: Any, width: int = 100) -> str:
    """Return plain data as YAML text: keys in their order, texts of several lines as such.

    Parameters
    ----------
    data
        Dictionaries, lists, numbers, strings.
    width
        Columns after which long lines are folded.
    """
    return yaml.dump(data, Dumper=_Readable, sort_keys=False, allow_unicode=True, width=width)
