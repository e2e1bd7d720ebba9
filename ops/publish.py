"""Publish models with a card that says what they are, and the report, below an s3:// URL."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from dpa_core.config import Config
from dpa_core.errors import DataError
from ops.files import read_json, write_json, write_text
from ops.storage import publish_folder
from ops.storage.published import CARD

MODEL, RUN, RESULTS, COLLECTED = "model.safetensors", "run.json", "results.json", "collect.json"
DATE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC")
ERRORS = {"rmse_e": ("energy", "meV/atom"), "rmse_f": ("force", "meV/Å"),
          "rmse_v": ("virial", "meV/atom")}  # fmt: skip
logger = logging.getLogger(__name__)


class PublishedModel(Config):
    """One model file."""

    name: str
    """File name, without ending."""
    step: str
    """Step that made the model."""
    tests: dict[str, str] = Field(default_factory=dict)
    """Step of tests -> name that this model has in its results."""
    data: tuple[str, ...] = ()
    """What it was trained on: STEP:PART of collected data."""
    started_from: str | None = None
    """Step or URL of the model that the training started from."""


class PublishConfig(Config):
    """What is published where."""

    to: str
    """s3://bucket/models/NAME."""
    name: str
    """Name of the pipeline."""
    models: tuple[PublishedModel, ...] = Field(min_length=1)
    """The models; who asks for the URL gets the first."""
    pipeline_hash: str = ""
    """Hash of the settings of the pipeline."""


class PublishInputs(NamedTuple):
    """Folders of steps, by step; tests and data may lack some.

    Attributes
    ----------
    models
        Trainings, or any step that leaves a `model.safetensors`.
    report
        The report.
    tests, data
        Tests and collected data.
    """

    models: Mapping[str, Path]
    report: Path
    tests: Mapping[str, Path] = {}
    data: Mapping[str, Path] = {}


def run_publish(inputs: PublishInputs, config: PublishConfig, outdir: Path) -> dict[str, Any]:
    """Publish model files, card, report and plots; readers see all of it or nothing.

    Parameters
    ----------
    inputs
        Folders of the steps.
    config
        Models and target.
    outdir
        Receives `version/` (what is published) and `published.json`: url, version.

    Returns
    -------
    dict[str, Any]
        The content of `published.json`.

    Raises
    ------
    DataError, ModelFileError
        A model is missing or cannot be read; nothing is published.
    ConfigError, StorageError
        The target cannot be written; readers keep what they had.
    """
    folder = outdir / "version"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    report = inputs.report / "report.html"
    page = report.read_text(encoding="utf-8") if report.is_file() else ""
    models = [_model(inputs, model, folder) for model in config.models]
    steps = dict.fromkeys(path for model in config.models for path in model.data)
    date = DATE.search(page)
    card = {
        "format": "dpaflow-model-card",
        "format_version": 1,
        "name": config.name,
        "model": models[0]["file"],
        "models": models,
        "training_data": [entry for path in steps if (entry := _data(inputs, path))],
        "date": date[0] if date else None,
        "pipeline_hash": config.pipeline_hash,
        "dpaflow": version("dpaflow"),
    }
    write_json(folder / CARD, card)
    write_text(folder / "README.md", readme(card, config.to))
    if page:
        write_text(folder / "report.html", page)
    _plots(inputs, config, folder / "plots")
    found = {"url": config.to, "version": publish_folder(folder, config.to)}
    write_json(outdir / "published.json", found)
    logger.info("published %s, version %s", config.to, found["version"])
    return found


def _model(inputs: PublishInputs, model: PublishedModel, folder: Path) -> dict[str, Any]:
    """Copy a model file, and say what it is."""
    from dpa_core.interchange.files import load_model, read_header

    source = inputs.models[model.step] / MODEL
    if not source.is_file():
        raise DataError(f"{model.step}: left no {MODEL}; publish.models names the wrong step")
    file = f"{model.name}.safetensors"
    shutil.copyfile(source, folder / file)
    header, loaded = read_header(source), load_model(source)
    facts = inputs.models[model.step] / RUN
    run = read_json(facts) if facts.is_file() else {}
    return {
        "file": file,
        "step": model.step,
        "type_map": header["type_map"],
        "elements_trained": run.get("elements"),
        "architecture": run.get("architecture"),
        "descriptor": header["config"]["descriptor"],
        "fitting_net": header["config"]["fitting_net"],
        "parameters": sum(p.numel() for p in loaded.parameters()),
        "started_from": model.started_from,
        "train_frames": run.get("train_frames"),
        "valid_frames": run.get("valid_frames"),
        "steps": run.get("steps"),
        "seed": run.get("seed"),
        "tests": _tests(inputs, model),
    }


def _tests(inputs: PublishInputs, model: PublishedModel) -> dict[str, Any]:
    """Errors of a model for each data set it was tested on."""
    found = {}
    for step, name in model.tests.items():
        path = inputs.tests[step] / RESULTS
        for entry in read_json(path)["results"] if path.is_file() else ():
            if entry["model"] == name:
                found[entry["data"]] = entry["overall"]
    return found


def _data(inputs: PublishInputs, path: str) -> dict[str, Any] | None:
    """Name, frames and sources of one part of collected data."""
    step, _, part = path.partition(":")
    file = inputs.data[step] / COLLECTED if step in inputs.data else None
    if file is None or not file.is_file():
        return None
    *sources, total = read_json(file)["table"]
    names = [row["source"] for row in sources if row[part]]
    return {"name": step, "part": part, "frames": total[part], "sources": names}


def _plots(inputs: PublishInputs, config: PublishConfig, folder: Path) -> None:
    """Copy the parity plots of the published models."""
    for model in config.models:
        for step, name in model.tests.items():
            for path in sorted(inputs.tests[step].glob(f"parity-{name}--*.png")):
                folder.mkdir(exist_ok=True)
                data = path.name.partition("--")[2]
                shutil.copyfile(path, folder / f"{model.name}--{data}")


def readme(card: Mapping[str, Any], url: str) -> str:
    """Return the card as a page of Markdown."""
    lines = [f"# {card['name']}", "", f"Published by dpaflow {card['dpaflow']} at `{url}`."]
    if card["date"]:
        lines[-1] += f" Report of {card['date']}."
    for model in card["models"]:
        lines += ["", f"## {model['file']}", "", *_model_lines(model), *_error_table(model)]
    if card["training_data"]:
        lines += ["", "## Training data", "", "| data set | frames | sources |", "|---|---|---|"]
    for entry in card["training_data"]:
        sources = ", ".join(entry["sources"][:6]) + ", ..." * (len(entry["sources"]) > 6)
        lines.append(f"| {entry['name']} ({entry['part']}) | {entry['frames']} | {sources} |")
    lines += ["", "## Use", "", "In a pipeline, to finetune it:", "", "```yaml", "pretrain:"]
    lines += [f"  from: {{my-model: {url}}}", "```", "", "In Python:", "", "```python"]
    lines += ["from dpa_core import DPACalculator", "from ops.storage import localize"]
    lines += ["", f'atoms.calc = DPACalculator(localize("{url}"))', "```", ""]
    return "\n".join(lines)


def _model_lines(model: Mapping[str, Any]) -> list[str]:
    elements = model["elements_trained"] or model["type_map"]
    descriptor = model["descriptor"]
    lines = [
        f"- {model['architecture'] or descriptor['type']}, {model['parameters']:,} parameters, "
        f"cutoff {descriptor['rcut']} Å",
        f"- trained on {model['train_frames'] or 'an unknown number of'} frames with "
        f"{' '.join(elements)}",
    ]
    if model["started_from"]:
        lines.append(f"- started from {model['started_from']}")
    return lines


def _error_table(model: Mapping[str, Any]) -> list[str]:
    if not model["tests"]:
        return []
    heads = [f"{name} RMSE, {unit}" for name, unit in ERRORS.values()]
    lines = ["", f"| test data | frames | {' | '.join(heads)} |", "|---" * 5 + "|"]
    for data, errors in model["tests"].items():
        values = [errors.get(key) for key in ERRORS]
        cells = ["–" if value is None else f"{1000 * value:.1f}" for value in values]
        lines.append(f"| {data} | {errors['nframes']} | {' | '.join(cells)} |")
    return lines
