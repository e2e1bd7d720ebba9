"""Turn pydantic's errors into lines a user can act on."""

from __future__ import annotations

import difflib
import typing
from typing import Any

import pydantic


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
    count = error.error_count()
    head = f"{source}: {count} mistake{'s' if count > 1 else ''}"
    return "\n".join([head, *(f"  {_line(item, cls)}" for item in error.errors())])


def _line(item: Any, cls: type[pydantic.BaseModel]) -> str:
    path = [part for part in item["loc"] if part != "function-after"]
    dotted = ".".join(str(part) for part in path) or "(top level)"
    if item["type"] == "extra_forbidden":
        allowed = allowed_keys(cls, path[:-1])
        close = difflib.get_close_matches(str(path[-1]), allowed, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"allowed: {', '.join(sorted(allowed))}"
        return f"{dotted}: unknown key; {hint}"
    if item["type"] == "missing":
        return f"{dotted}: missing; this key is required"
    message = item["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    seen = repr(item["input"])
    if len(seen) > 60:
        seen = seen[:57] + "..."
    return f"{dotted}: {message} (got {seen})"


def allowed_keys(cls: Any, path: list[Any]) -> list[str]:
    """Keys allowed at a dotted path; union members are named by their `type`."""
    classes = [cls]
    for part in path:
        classes = [found for c in classes for found in _step(c, part)] or classes
    return sorted({name for c in classes for name in c.model_fields})


def _step(cls: type[pydantic.BaseModel], part: Any) -> list[type[pydantic.BaseModel]]:
    if isinstance(part, str) and part in cls.model_fields:
        return _models_in(cls.model_fields[part].annotation)
    return []


def _models_in(annotation: Any) -> list[type[pydantic.BaseModel]]:
    """All configuration classes inside an annotation such as `A | B | None` or `dict[str, A]`."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return [annotation]
    found: list[type[pydantic.BaseModel]] = []
    for inner in typing.get_args(annotation):
        found.extend(_models_in(inner))
    return found
