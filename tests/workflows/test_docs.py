"""What the documentation shows is what the program takes: files, keys, defaults, columns."""

import re
from pathlib import Path
from typing import get_args

import pydantic
import pytest
import yaml
from typer.testing import CliRunner

from dpa_core.config import parse_config
from ops.labelers import Labeler
from ops.loop_rows import COLUMNS, VERDICTS
from tests.workflows.helpers import write_model
from workflows.cli import TEMPLATES, app
from workflows.pipeline import plan
from workflows.schema import Pipeline, load_pipeline
from workflows.schema_loop import STAGE_BLOCKS, ConcurrentLearning, LoopTraining, Stage, merge

ROOT = Path(__file__).resolve().parents[2]
LOOP = (ROOT / "docs/concurrent_learning.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")),
         *sorted((ROOT / "examples").glob("*/README.md"))]  # fmt: skip


def blocks(text):
    """Documents of the YAML blocks of a page."""
    return [yaml.safe_load(b) for b in re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S)]


def tables(text, *head):
    """Cells of all rows of the tables whose heading begins with `head`."""
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        rows = [[c.strip() for c in row.strip("|").split("|")] for row in table.splitlines()]
        if tuple(c.strip() for c in rows[0][: len(head)]) == head:
            yield from rows[2:]


def find(model, path):
    """Field of a settings class at a dotted path, whatever `type` it belongs to; else None."""
    name, *rest = path
    if name.isdigit():
        return find(model, rest)
    if model is ConcurrentLearning and name in STAGE_BLOCKS:
        return find(Stage, path)
    if model is LoopTraining and name in ("later", "final") and rest:
        return find(LoopTraining, rest)
    field = model.model_fields.get(name)
    if field is None or not rest:
        return field
    found = (find(inner, rest) for inner in models(field.annotation))
    return next((f for f in found if f is not None), None)


def models(annotation):
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return [annotation]
    return [m for inner in get_args(annotation) for m in models(inner)]


def test_pipelines_on_the_pages_are_valid():
    whole, *fragments = blocks(LOOP)
    assert plan(parse_config(Pipeline, whole, "docs"))
    assert len(fragments) >= 8
    for fragment in fragments:
        assert set(fragment) <= set(ConcurrentLearning.model_fields)
        loop = merge(whole["concurrent_learning"], fragment)
        if "adaptive" in fragment.get("select", {}):
            del loop["select"]["lo"]
        parse_config(Pipeline, whole | {"concurrent_learning": loop}, str(fragment))
    for document in blocks(README):
        parse_config(Pipeline, document, "README")


def test_keys_and_defaults_of_the_tables():
    rows = list(tables(LOOP, "key", "default"))
    assert len(rows) > 40
    for keys, default, *_ in rows:
        names = re.findall(r"`([\w.]+)`", keys)
        fields = {name: find(ConcurrentLearning, name.split(".")) for name in names}
        assert None not in fields.values(), fields
        if default:
            told = yaml.safe_load(f"[{default}]") if len(names) > 1 else [yaml.safe_load(default)]
            real = [field.get_default() for field in fields.values()]
            assert told == [list(r) if isinstance(r, tuple) else r for r in real], names


def test_settings_that_are_changed_exist():
    changes = re.findall(r"--set ([a-z][\w.]+)=", LOOP + README)
    assert len(changes) >= 6
    for key in changes:
        assert find(ConcurrentLearning, key.split(".")), key


def test_find_fails_on_wrong_keys():
    for key in ("select.low", "label.labeler.templat", "train.later.numb_step", "explore.stop.x"):
        assert find(ConcurrentLearning, key.split(".")) is None


def test_columns_and_verdicts():
    told = {name for row in tables(LOOP, "column") for name in row[0].split(", ")}
    real = {c.name for c in COLUMNS if not c.wide} - {"it", "stage", "verdict"}
    assert told == (real - {"train", "expl", "label"}) | {"time"}
    assert {row[0] for row in tables(LOOP, "verdict")} == set(VERDICTS) - {
        "continue", "stage converged"
    }  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)", file.read_text(encoding="utf-8"), re.M)
            # as GitHub makes anchors
            anchors = {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles}
            assert anchor in anchors, f"{page}: {target}"


@pytest.fixture
def folder(tmp_path):
    """Folder with every file that the templates name."""
    files = [f"data/{kind}.extxyz" for kind in ("unary", "binary", "ternary")]
    files += ["vasp/INCAR", "vasp/INCAR.slow"]
    files += [f"vasp/potcars/{name}/POTCAR" for name in ("Ni_pv", "Cu")]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    write_model(tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize("name", sorted(path.stem for path in TEMPLATES.glob("*.yaml")))
def test_templates_are_valid_and_listed(name, folder, monkeypatch):
    monkeypatch.delenv("VASP_PP_PATH", raising=False)
    help_text = CliRunner().invoke(app, ["init", "--help"], env={"COLUMNS": "200"}).output
    assert re.search(rf"\b{name}\b", help_text)
    path = folder / "pipeline.yaml"
    path.write_text((TEMPLATES / f"{name}.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    assert plan(load_pipeline(path, {}))


def test_alternatives_in_the_template_of_the_loop():
    text = (TEMPLATES / "concurrent.yaml").read_text(encoding="utf-8")
    for option in ("replay", "mine", "compare"):
        assert text.count(f"# {option}: ") == 1
        text = text.replace(f"# {option}: ", f"{option}: ")
    loop = parse_config(Pipeline, yaml.safe_load(text), "template").concurrent_learning
    assert loop.train.replay
    assert "mine" in loop.structures
    assert loop.compare.random
    block = re.search(r"^    # labeler:.*\n(?:    #   .*\n)+", text, re.M)
    other = yaml.safe_load(re.sub(r"^    # ", "", block[0], flags=re.M))
    assert pydantic.TypeAdapter(Labeler).validate_python(other["labeler"]).type == "cp2k"


@pytest.mark.parametrize("name", ["emt", "cp2k"])
def test_examples_of_the_loop_are_valid(name, tmp_path):
    test = tmp_path / "test.extxyz"
    test.touch()
    path = ROOT / f"examples/concurrent_learning/{name}.yaml"
    assert plan(load_pipeline(path, {"EMT_TEST": str(test)}))
