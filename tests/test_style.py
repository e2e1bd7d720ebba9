"""Budgets that keep the code readable: file and function lengths, public docstrings, no leaks."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("dpa_core", "ops", "workflows")
MAX_FILE, MAX_FUNCTION, MAX_MEDIAN = 400, 60, 15

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> list[Path]:
    files = [f for package in PACKAGES for f in sorted((ROOT / package).rglob("*.py"))]
    assert len(files) > 20
    return files


def functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, Function):
            yield node


def code_length(node: Function) -> int:
    """Lines from `def` to the end, the docstring excluded."""
    length = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        length -= (first.end_lineno or first.lineno) - first.lineno + 1
    return length


def test_files_are_short() -> None:
    lengths = {f: len(f.read_text(encoding="utf-8").splitlines()) for f in sources()}
    too_long = {str(f.relative_to(ROOT)): n for f, n in lengths.items() if n > MAX_FILE}
    assert not too_long, f"longer than {MAX_FILE} lines: {too_long}"


def test_functions_are_short() -> None:
    too_long, lengths = {}, []
    for path in sources():
        for node in functions(path):
            n = code_length(node)
            lengths.append(n)
            if n > MAX_FUNCTION:
                too_long[f"{path.relative_to(ROOT)}:{node.name}"] = n
    assert not too_long, f"longer than {MAX_FUNCTION} lines: {too_long}"
    assert sorted(lengths)[len(lengths) // 2] <= MAX_MEDIAN


def test_imports_do_no_work() -> None:
    """Importing the packages loads no orchestrator, plots nothing and reads no network."""
    code = (
        "import sys, dpa_core, ops, workflows, workflows.cli\n"
        "heavy = {'dflow', 'argo', 'kubernetes', 'dpdata', 'matplotlib', 'tensorboard'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_help_is_quick() -> None:
    """`dpaflow --help` must not import torch."""
    code = "import sys, workflows.cli; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", ["LICENSE", "CITATION.cff", "CHANGELOG.md", "README.md"])
def test_project_files(name: str) -> None:
    assert (ROOT / name).stat().st_size > 200


def test_versions_agree() -> None:
    import tomllib

    import yaml

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_conventions_fit_on_a_screen() -> None:
    assert len((ROOT / "docs" / "conventions.md").read_text().splitlines()) <= 30
