"""Variables and expressions in templates, and the `depends` of DAG tasks.

The expressions are the part of the language expr that retry strategies and pod patches use:
literals, names with dots, calls, arithmetic, comparisons, in, matches, && || ! ?: and lists.
Strings and numbers are never converted silently, and `/` is never an integer division.
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)|(?P<string>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")"
    r"|(?P<name>[A-Za-z_]\w*)|(?P<op>\*\*|&&|\|\||[=!<>]=|[-+*/%^<>!?:()\[\],.]))"
)
BINARY = {
    "||": 2, "or": 2, "&&": 3, "and": 3, "==": 5, "!=": 5, "<": 5, ">": 5, "<=": 5,
    ">=": 5, "in": 5, "not": 5, "matches": 5, "contains": 5, "startsWith": 5, "endsWith": 5,
    "+": 6, "-": 6, "*": 7, "/": 7, "%": 7, "**": 9, "^": 9,
}  # fmt: skip
UNARY = 8
CONSTANTS = {"true": True, "false": False, "nil": None}
ORDER: Mapping[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge
}  # fmt: skip
ARITHMETIC: Mapping[str, Callable[[Any, Any], Any]] = {
    "-": operator.sub, "*": operator.mul, "/": operator.truediv, "%": math.fmod,
    "**": lambda a, b: float(a) ** b, "^": lambda a, b: float(a) ** b,
}  # fmt: skip
TEXT: Mapping[str, Callable[[str, str], bool]] = {
    "matches": lambda a, b: re.search(b, a) is not None,
    "contains": lambda a, b: b in a,
    "startsWith": str.startswith,
    "endsWith": str.endswith,
}


class ExpressionError(ValueError):
    """An expression is wrong."""


class UnknownName(ExpressionError):
    """An expression has no value here."""


def _integer(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise ExpressionError(f"cannot convert {value!r} to int") from error


def _sprig_int(value: Any) -> int:
    try:  # sprig says 0 to what is no number
        return int(value)
    except (TypeError, ValueError):
        return 0


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "asInt": _integer, "asFloat": float, "int": _integer, "float": float, "string": str,
    "min": min, "max": max, "abs": abs, "len": len, "ceil": math.ceil, "floor": math.floor,
    "toJson": json.dumps, "sprig.int": _sprig_int, "sprig.int64": _sprig_int, "sprig.max": max,
    "sprig.min": min, "sprig.mul": lambda *x: math.prod(map(_sprig_int, x)),
    "sprig.add": lambda *x: sum(map(_sprig_int, x)),
}  # fmt: skip


class Parser:
    """Turns a text into a function of the names in scope."""

    def __init__(self, text: str) -> None:
        self.text, self.tokens, place = text, [], 0
        text = text.rstrip()
        while place < len(text):
            match = TOKEN.match(text, place)
            if match is None:
                raise ExpressionError(f"unexpected {text[place:]!r} in {text!r}")
            self.tokens.append((match.lastgroup, match[match.lastgroup or 0]))
            place = match.end()
        self.tokens.append(("end", ""))

    def take(self, *wanted: str) -> str | None:
        """Return the next token if it is one of those, and go on."""
        kind, text = self.tokens[0]
        if kind not in ("string", "number") and text in wanted:
            return self.tokens.pop(0)[1]
        return None

    def need(self, wanted: str) -> None:
        if self.take(wanted) is None:
            raise ExpressionError(
                f"{wanted!r} expected, got {self.tokens[0][1]!r} in {self.text!r}"
            )

    def parse(self) -> Any:
        tree = self.ternary()
        if self.tokens[0][0] != "end":
            raise ExpressionError(f"unexpected {self.tokens[0][1]!r} in {self.text!r}")
        return tree

    def ternary(self) -> Any:
        tree = self.binary(0)
        if self.take("?"):
            yes = self.ternary()
            self.need(":")
            return ("?", tree, yes, self.ternary())
        return tree

    def binary(self, least: int) -> Any:
        left = self.unary()
        while True:
            kind, text = self.tokens[0]
            level = BINARY.get(text, 0) if kind in ("op", "name") else 0
            if not level or level < least:
                return left
            self.tokens.pop(0)
            if text == "not":
                self.need("in")
                left = ("!", ("in", left, self.binary(level + 1)))
            else:  # powers bind to the right
                left = (text, left, self.binary(level if level == 9 else level + 1))

    def unary(self) -> Any:
        if self.take("!", "not"):
            return ("!", self.binary(UNARY))
        if self.take("-"):
            return ("unary-", self.binary(UNARY))
        return self.suffix(self.primary())

    def primary(self) -> Any:
        kind, text = self.tokens.pop(0)
        if kind == "number":
            return ("value", int(text) if text.isdigit() else float(text))
        if kind == "string":
            return ("value", re.sub(r"\\(.)", r"\1", text[1:-1]))
        if kind == "name":
            return ("value", CONSTANTS[text]) if text in CONSTANTS else ("name", text)
        if text == "(":
            tree = self.ternary()
            self.need(")")
            return tree
        if text == "[":
            return ("list", *self.items("]"))
        raise ExpressionError(f"unexpected {text or 'end'!r} in {self.text!r}")

    def suffix(self, tree: Any) -> Any:
        while True:
            if self.take("."):
                kind, text = self.tokens.pop(0)
                if kind != "name":
                    raise ExpressionError(f"name expected after . in {self.text!r}")
                # functions of a library, and variables, have names with dots
                tree = ("name", f"{tree[1]}.{text}") if tree[0] == "name" else (".", tree, text)
            elif self.take("("):
                tree = ("call", tree, *self.items(")"))
            elif self.take("["):
                (index,) = self.items("]")
                tree = ("[]", tree, index)
            else:
                return tree

    def items(self, end: str) -> list[Any]:
        found: list[Any] = []
        while not self.take(end):
            if found:
                self.need(",")
            found.append(self.ternary())
        return found


def evaluate(text: str, scope: Mapping[str, Any]) -> Any:
    """Return the value of an expression; `scope` has flat names such as "lastRetry.exitCode"."""
    return _value(Parser(text).parse(), scope)


def _value(tree: Any, scope: Mapping[str, Any]) -> Any:
    kind, *rest = tree
    if kind == "value":
        return rest[0]
    if kind == "name":
        if rest[0] not in scope:
            return _group(rest[0], scope)
        return scope[rest[0]]
    if kind == "call":
        name = rest[0][1] if rest[0][0] == "name" else "?"
        if name not in FUNCTIONS:
            raise ExpressionError(f"unknown function {name}")
        return FUNCTIONS[name](*(_value(item, scope) for item in rest[1:]))
    if kind == "?":
        return _value(rest[1] if _boolean(rest[0], scope) else rest[2], scope)
    if kind in ("&&", "and"):
        return _boolean(rest[0], scope) and _boolean(rest[1], scope)
    if kind in ("||", "or"):
        return _boolean(rest[0], scope) or _boolean(rest[1], scope)
    if kind == "!":
        return not _boolean(rest[0], scope)
    return _operate(
        kind, [_value(item, scope) if isinstance(item, tuple) else item for item in rest]
    )


def _group(name: str, scope: Mapping[str, Any]) -> Any:
    """Return all names below one, for what is written as tasks['a-b'].outputs.parameters['c']."""
    found: dict[str, Any] = {}
    for key, value in scope.items():
        *parts, last = key.removeprefix(f"{name}.").split(".")
        if key.startswith(f"{name}."):
            place = found
            for part in parts:
                place = place.setdefault(part, {})
            place[last] = value
    if not found:
        raise UnknownName(f"unknown name {name}")
    return found


def _boolean(tree: Any, scope: Mapping[str, Any]) -> bool:
    value = _value(tree, scope)
    if not isinstance(value, bool):
        raise ExpressionError(f"{value!r} is not a boolean")
    return value


def _operate(kind: str, values: list[Any]) -> Any:
    if kind in ("list", "unary-"):
        return values if kind == "list" else -values[0]
    left, right = values
    if kind in ("==", "!="):
        same = left == right and _numeric(left) == _numeric(right)
        return same if kind == "==" else not same
    if kind == "in":
        return any(_operate("==", [left, item]) for item in right)
    if kind in (".", "[]"):
        try:
            return left[right]
        except (KeyError, IndexError) as error:
            raise UnknownName(f"nothing is called {right!r}") from error
    return _compute(kind, left, right)


def _compute(kind: str, left: Any, right: Any) -> Any:
    texts = isinstance(left, str) and isinstance(right, str)
    if kind in TEXT and texts:
        return TEXT[kind](left, right)
    if kind == "+" and (texts or (_numeric(left) and _numeric(right))):
        return left + right
    if kind in ORDER and (texts or (_numeric(left) and _numeric(right))):
        return ORDER[kind](left, right)
    if kind in ARITHMETIC and _numeric(left) and _numeric(right):
        value = ARITHMETIC[kind](left, right)
        return int(value) if kind == "%" else value
    raise ExpressionError(f"invalid operation: {left!r} {kind} {right!r}")


def _numeric(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


TAG = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)


def substitute(document: Any, scope: Mapping[str, str]) -> Any:
    """Replace {{name}} and {{=expression}} in all strings; what has no value yet stays."""

    def replace(match: re.Match[str]) -> str:
        text = match[1]
        if text.startswith("="):
            try:
                return _shown(evaluate(text[1:], scope))
            except UnknownName:
                return match[0]
        return scope.get(text.strip(), match[0])

    if isinstance(document, str):
        return TAG.sub(replace, document)
    if isinstance(document, Mapping):
        return {name: substitute(item, scope) for name, item in document.items()}
    if isinstance(document, list):
        return [substitute(item, scope) for item in document]
    return document


def _shown(value: Any) -> str:
    """Return a value as it is written into a template: JSON, strings without quotes."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
        return str(int(value))
    return value if isinstance(value, str) else json.dumps(value)


REFERENCE = re.compile(r"tasks\[['\"]([-\w]+)['\"]\]((?:\.\w+|\[['\"][-\w]+['\"]\])*)")


def tags(document: Any) -> set[str]:
    """Return the names of all variables that a document refers to, and of tasks in expressions."""
    found = {tag.strip() for tag in TAG.findall(json.dumps(document))}
    plain = {tag for tag in found if not tag.startswith("=")}
    for task, rest in REFERENCE.findall(" ".join(found - plain)):
        plain.add(f"tasks.{task}." + ".".join(re.findall(r"[-\w]+", rest)))
    return plain


RESULTS = ("Succeeded", "Failed", "Errored", "Skipped", "Omitted", "Daemoned")
WORD = re.compile(r"\s*(&&|\|\||[!()]|[A-Za-z0-9][-\w]*(?:\.[A-Z][A-Za-z]+)?)")


class Depends:
    """The condition `depends` of a task, such as "a && (b.Succeeded || b.Failed)"."""

    def __init__(self, text: str) -> None:
        self.text, self.words, place = text, [], 0
        while place < len(text.rstrip()):
            match = WORD.match(text, place)
            if match is None:
                raise ExpressionError(f"invalid depends {text!r} at {text[place:]!r}")
            self.words.append(match[1])
            place = match.end()
        self.tasks: set[str] = set()
        self.tree = self._any() if self.words else True
        if self.words:
            raise ExpressionError(f"invalid depends {text!r}: unexpected {self.words[0]!r}")

    def _any(self) -> Any:
        tree = self._all()
        while self.words[:1] == ["||"]:
            self.words.pop(0)
            tree = ("or", tree, self._all())
        return tree

    def _all(self) -> Any:
        tree = self._one()
        while self.words[:1] == ["&&"]:
            self.words.pop(0)
            tree = ("and", tree, self._one())
        return tree

    def _one(self) -> Any:
        word = self.words.pop(0) if self.words else ""
        if word == "!":
            return ("not", self._one())
        if word == "(":
            tree = self._any()
            if self.words[:1] != [")"]:
                raise ExpressionError(f"invalid depends {self.text!r}: ) is missing")
            self.words.pop(0)
            return tree
        if not re.match(r"[A-Za-z0-9]", word):
            raise ExpressionError(f"invalid depends {self.text!r}: task expected, got {word!r}")
        task, _, result = word.partition(".")
        if result and result not in RESULTS:
            raise ExpressionError(f"invalid depends {self.text!r}: no task result {result!r}")
        self.tasks.add(task)
        return ("is", task, (result,) if result else ("Succeeded", "Skipped", "Daemoned"))

    def holds(self, phases: Mapping[str, str]) -> bool:
        """Return whether a task may run, given the phases of all it depends on."""

        def value(tree: Any) -> bool:
            if tree is True:
                return True
            kind, *rest = tree
            if kind == "is":
                task, wanted = rest
                phase = phases[task]
                return ("Errored" if phase == "Error" else phase) in wanted
            if kind == "not":
                return not value(rest[0])
            found = [value(item) for item in rest]
            return any(found) if kind == "or" else all(found)

        return value(self.tree)
