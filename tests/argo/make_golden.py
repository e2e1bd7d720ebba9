"""Render every example as an Argo workflow: `python -m tests.argo.make_golden` writes golden/.

The data that examples read from outside are replaced by small files with known content.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from dpa_core.yaml_file import to_yaml
from workflows.backends.argo.inputs import externalise
from workflows.backends.argo.limits import measure
from workflows.backends.argo.render import render
from workflows.backends.argo.run import Run
from workflows.schema import Pipeline, load_pipeline

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden"
OUTSIDE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}(/[^\"'}, ]+)?")


def examples() -> list[Path]:
    """Every pipeline among the examples."""
    found = sorted((ROOT / "examples").glob("*/*.yaml"))
    return [path for path in found if "\nmodels:" in path.read_text(encoding="utf-8")]


def name_of(example: Path) -> str:
    stem = "" if example.stem == "pipeline" else f"-{example.stem}"
    return f"{example.parent.name}{stem}"


def load(example: Path, folder: Path) -> Pipeline:
    """Load an example; `folder` receives what stands in for its data."""
    environment = {}
    for variable, default, path in OUTSIDE.findall(example.read_text(encoding="utf-8")):
        if not path and "." not in default:
            continue  # not a file
        place = folder / variable / path.lstrip("/") if path else folder / f"{variable}.extxyz"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"stands in for {variable}{path}\n", encoding="utf-8")
        environment[variable] = str(folder / variable if path else place)
    return load_pipeline(example, environment)


def rendered(example: Path, folder: Path) -> dict:
    pipeline, _ = externalise(load(example, folder))
    return render(Run(pipeline))


def texts() -> Iterator[tuple[str, str]]:
    for example in examples():
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            manifest = rendered(example, Path(folder))
            seconds = time.perf_counter() - begin
        size = measure(manifest)
        sys.stderr.write(
            f"{name_of(example):<32} {size.pods:3d} pods {size.spec / 1e3:7.1f} kB "
            f"largest step {size.template / 1e3:5.1f} kB {seconds:5.2f} s\n"
        )
        yield name_of(example), to_yaml(manifest)


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    written = set()
    for name, text in texts():
        (GOLDEN / f"{name}.yaml").write_text(text, encoding="utf-8")
        written.add(f"{name}.yaml")
    for path in GOLDEN.glob("*.yaml"):
        if path.name not in written:
            path.unlink()


if __name__ == "__main__":
    main()
