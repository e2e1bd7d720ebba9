"""One door in and one door out for model files of every format.

A file is recognised by its content; a file to write is made as its suffix says. Where one file
holds several models (branches of a multi-task checkpoint, heads of a committee), `FILE#NAME`
names one.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpa_core.errors import ModelFileError
from dpa_core.interchange.content import AGAIN, Content, build

if TYPE_CHECKING:
    from dpa_core.model import Potential

# Format -> what it is, and the module that reads (`read`) and perhaps writes it (`save`).
FORMATS = {
    "native": ("model of dpaflow (.safetensors)", "native"),
    "dp": ("DeePMD-kit's backend-independent file (.dp)", "deepmd_dp"),
    "yaml": ("DeePMD-kit's backend-independent file as text (.yaml)", "deepmd_yaml"),
    "pt": ("checkpoint of DeePMD-kit's PyTorch backend (.pt)", "deepmd_pt"),
    "pth": ("frozen model of DeePMD-kit's PyTorch backend (.pth)", "deepmd_pth"),
    "pb": ("frozen graph of DeePMD-kit's TensorFlow backend (.pb)", "tensorflow_pb"),
}
WRITABLE = {".safetensors": "native", ".dp": "dp", ".yaml": "yaml", ".yml": "yaml", ".pt": "pt"}
_HEAD = 4096
_LONGEST_MESSAGE = 2000


def load_model(path: str | Path) -> Potential:
    """Read a model file of any format.

    Parameters
    ----------
    path
        The file; `FILE#NAME` for one branch of a multi-task checkpoint or one head.

    Returns
    -------
    Potential
        On the CPU, with `provenance` filled.

    Raises
    ------
    ModelFileError
        If the file is missing, damaged, of an unknown format or version, or holds something
        that cannot be represented exactly.
    """
    content = read_content(path)
    with _short_messages():
        return build(content, path)


def read_content(path: str | Path) -> Content:
    """Do as `load_model`, but do not build the model."""
    file, name = split_name(path)
    kind = detect_format(file)
    with _short_messages():
        content: Content = _module(kind).read(file, name)
    origin = content.provenance.get("origin")
    if not isinstance(origin, dict) or "format" in origin or origin.get("file") != file.name:
        return content  # the provenance that we wrote ourselves
    origin = {"format": FORMATS[kind][0], **origin}
    return content._replace(provenance=content.provenance | {"origin": origin})


def read_header(path: str | Path) -> dict[str, Any]:
    """Format, config, type_map and provenance of a model file of any format.

    Raises
    ------
    ModelFileError
        As `load_model`, but tensors may be unchecked.
    """
    file = split_name(path)[0]
    kind = detect_format(file)
    if kind == "native":
        with _short_messages():
            return _module(kind).read_native_header(file)
    content = read_content(path)
    return {
        "format": FORMATS[kind][0],
        "config": content.config.model_dump(mode="json"),
        "type_map": list(content.config.type_map),
        "provenance": content.provenance,
    }


def save_model(
    model: Potential, path: str | Path, provenance: dict[str, Any] | None = None
) -> Path:
    """Write a model file; an existing one is replaced only when the new one is complete.

    Parameters
    ----------
    model
        Any model of this package.
    path
        File to write: .safetensors, or .dp, .yaml, .yml, .pt for DeePMD-kit. Its folder is made
        if needed.
    provenance
        What made the model, JSON-able; None keeps `model.provenance`.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    ModelFileError
        If the suffix names no format, or the format cannot represent the model exactly.
    """
    path = Path(path)
    kind = WRITABLE.get(path.suffix.lower())
    if kind is None:
        raise ModelFileError(
            f"{path}: cannot write {path.suffix or 'a file without suffix'!r}; allowed: "
            f"{', '.join(WRITABLE)}"
        )
    return _module(kind).save(model, path, provenance)


def split_name(path: str | Path) -> tuple[Path, str | None]:
    """`FILE#NAME` -> file and name; a file that is really called so comes first."""
    text = str(path)
    if "#" not in text or os.path.exists(text):  # noqa: PTH110  (no error for impossible names)
        return Path(text), None
    file, _, name = text.rpartition("#")
    return Path(file), name


def detect_format(path: Path) -> str:
    """Return the format of a file, by its first bytes.

    Raises
    ------
    ModelFileError
        If there is no such file or it is none of `FORMATS`.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            what = "a folder" if stat.S_ISDIR(mode) else "a pipe or device"
            raise ModelFileError(f"{path}: {what}, not a model file; give a file")
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: no such model file") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise ModelFileError(f"{path}: cannot be read: {error}") from error
    if not head:
        raise ModelFileError(f"{path}: an empty file, not a model; {AGAIN}")
    kind = _kind(head, path)
    if kind is None:
        raise ModelFileError(
            f"{path}: not a model file, or damaged from the start ({head[:8]!r}); "
            f"readable are: {'; '.join(text for text, _ in FORMATS.values())}"
        )
    return kind


def _kind(head: bytes, path: Path) -> str | None:
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "dp"
    if head.startswith(b"PK\x03\x04"):
        from dpa_core.interchange.torch_archive import holds_code

        return "pth" if holds_code(path) else "pt"
    if head[8:9] == b"{":
        return "native"
    if _looks_like_graph(head):
        return "pb"
    text = head.lstrip(b"\xef\xbb\xbf \r\n")
    if text[:1].isalpha() or text[:1] in (b"@", b"'", b'"', b"#", b"%", b"-", b"{"):
        return "yaml" if b"\0" not in head else None
    return None


def _looks_like_graph(head: bytes) -> bool:
    """Whether this starts as a protobuf GraphDef: field 1 (a node), its field 1 (a name)."""
    return head[:1] == b"\n" and any(head[k : k + 1] == b"\n" for k in range(2, 5))


@contextmanager
def _short_messages() -> Iterator[None]:
    """Cut messages that quote a file at length."""
    try:
        yield
    except ModelFileError as error:
        text = str(error)
        if len(text) <= _LONGEST_MESSAGE:
            raise
        raise ModelFileError(f"{text[:_LONGEST_MESSAGE]} ...") from error


def _module(kind: str) -> Any:
    return import_module(f"dpa_core.interchange.{FORMATS[kind][1]}")
