"""Read settings; turn pydantic's errors into lines a user can act on."""

from __future__ import annotations

import collections.abc
import difflib
import types
import typing
from typing import Any, TypeVar

import pydantic

from dpa_core.errors import ConfigError

ConfigT = TypeVar("ConfigT", bound=pydantic.BaseModel)
UNIONS = (typing.Union, types.UnionType)
SEQUENCES = (list, tuple, set, frozenset, collections.abc.Sequence)
MAX_SEEN = 60
PLAIN = {
    "tuple_type": "expected a list, in [ ]",
    "list_type": "expected a list, in [ ]",
    "dict_type": "expected a mapping, key: value",
    "model_type": "expected a mapping, key: value",
    "string_type": "expected text; numbers, yes and no in quotes",
    "int_parsing": "expected a whole number",
    "int_from_float": "expected a whole number",
    "bool_parsing": "expected true or false",
}
"""In the words of somebody who writes YAML."""


def parse_config(cls: type[ConfigT], data: Any, source: str) -> ConfigT:
    """Validate `data` as `cls`; every mistake is reported at once.

    Parameters
    ----------
    cls
        A block of settings.
    data
        Plain dictionaries and lists, as read from YAML or JSON.
    source
        The file's name, quoted in the message.

    Raises
    ------
    ConfigError
        One line per mistake: dotted path, what is wrong, value seen, suggestion.
    """
    try:
        return cls.model_validate(data)
    except pydantic.ValidationError as error:
        raise ConfigError(explain(error, cls, source)) from error


def explain(error: pydantic.ValidationError, cls: type[pydantic.BaseModel], source: str) -> str:
    """One line per mistake: dotted path, problem, value seen, allowed, suggestion.

    Parameters
    ----------
    error
        What validation raised.
    cls
        The class that was validated, to find the allowed keys.
    source
        File name quoted at the head of the message.
    """
    lines: dict[tuple[str, str], list[str]] = {}
    errors = error.errors()
    for item in errors:
        if item["type"] == "too_short" and any(_inside(other, item) for other in errors):
            continue  # short only because its items are wrong
        dotted, ending, problem = _mistake(item, cls)
        # a union reports once for each of its members, at the same place
        problems = lines.setdefault((dotted, ending), [])
        if problem not in problems:
            problems.append(problem)
    head = f"{source}: {len(lines)} mistake{'s' if len(lines) > 1 else ''}"
    text = [
        f"  {dotted}: {', or '.join(problems)}{ending}"
        for (dotted, ending), problems in lines.items()
    ]
    return "\n".join([head, *text])


def _example(loc: tuple[Any, ...], cls: type[pydantic.BaseModel]) -> str:
    """Return the example that a field gives, "" without one."""
    for model in _walk(loc, cls, keep_last=True)[1]:
        if isinstance(model, type) and issubclass(model, pydantic.BaseModel):
            field = _fields(model).get(loc[-1])
            if field is not None and field.examples:
                return str(field.examples[0])
    return ""


def _inside(item: Any, outer: Any) -> bool:
    return len(item["loc"]) > len(outer["loc"]) and item["loc"][: len(outer["loc"])] == outer["loc"]


def _mistake(item: Any, cls: type[pydantic.BaseModel]) -> tuple[str, str, str]:
    """Dotted path, end of the line (the value seen), problem."""
    path, place = _walk(item["loc"], cls, keep_last=item["type"] == "extra_forbidden")
    dotted = ".".join(str(part) for part in path) or "(top level)"
    if item["type"] == "extra_forbidden":
        allowed = _keys(place)
        close = difflib.get_close_matches(str(path[-1]), allowed, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"allowed: {', '.join(allowed)}"
        return dotted, "", f"unknown key; {hint}"
    if item["type"] == "missing":
        return dotted, "", "missing; this key is required"
    message = PLAIN.get(item["type"], item["msg"].removeprefix("Value error, "))
    if item["type"] == "string_pattern_mismatch" and (example := _example(item["loc"], cls)):
        message = f"not of the form that is needed; write it like {example}"
    if item["type"] in ("union_tag_invalid", "union_tag_not_found"):
        context = item.get("ctx", {})
        message = f"type must be one of {context.get('expected_tags', _tags(place))}"
    seen = repr(item["input"])
    if len(seen) > MAX_SEEN:
        seen = seen[: MAX_SEEN - 3] + "..."
    return dotted, f" (got {seen})", message[:1].lower() + message[1:]


def _walk(loc: tuple[Any, ...], cls: Any, *, keep_last: bool) -> tuple[list[Any], list[Any]]:
    """Follow an error's location through the classes.

    Returns the parts that a user wrote (pydantic adds tags of union members) and the
    annotations of the last block reached.
    """
    path: list[Any] = []
    place = [cls]
    for number, part in enumerate(loc):
        if keep_last and number == len(loc) - 1:
            path.append(part)
            break
        found = [inner for annotation in place for inner in _step(annotation, part)]
        if found:
            path.append(part)
            place = [member for annotation in found for member in _members(annotation)]
        else:
            place = [a for a in place if _tag(a) == part] or place
    return path, place


def _step(annotation: Any, part: Any) -> list[Any]:
    """Annotation of member `part` of a block, mapping or sequence; empty if it has none."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        field = _fields(annotation).get(part)
        return [] if field is None else [field.annotation]
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (dict, collections.abc.Mapping) and isinstance(part, str):
        return [args[1]]
    if origin in SEQUENCES and isinstance(part, int):
        return [arg for arg in args if arg is not Ellipsis]
    return []


def _members(annotation: Any) -> list[Any]:
    """Members of a (nested, annotated) union; the annotation itself if it is none."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _members(args[0])
    if origin in UNIONS:
        return [member for arg in args for member in _members(arg)]
    return [annotation]


def _fields(cls: type[pydantic.BaseModel]) -> dict[str, Any]:
    """Fields under the names that a file uses."""
    return {field.alias or name: field for name, field in cls.model_fields.items()}


def _keys(place: list[Any]) -> list[str]:
    """Keys allowed in a block."""
    models = [a for a in place if isinstance(a, type) and issubclass(a, pydantic.BaseModel)]
    return sorted({name for model in models for name in _fields(model)})


def _tag(annotation: Any) -> Any:
    """Value of `type` that selects this member of a union."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        field = annotation.model_fields.get("type")
        return None if field is None else field.default
    return None


def _tags(place: list[Any]) -> str:
    return ", ".join(repr(tag) for annotation in place if (tag := _tag(annotation)) is not None)
