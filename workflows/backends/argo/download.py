"""Results of a run on a cluster, fetched through the Argo server: no credentials of the bucket."""

from __future__ import annotations

import shutil
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from dpa_core.errors import ConfigError
from ops.catalog import find_op
from workflows.backends.argo.cluster_run import ClusterRun
from workflows.backends.argo.pods import FOLDER, REPORT
from workflows.backends.argo.states import Attempts, attempts
from workflows.backends.argo.transport import ServerError
from workflows.graph import Node, needs
from workflows.pipeline import MODEL

WHOLE, MODELS = "report", "model"
"""What can be downloaded beside the folders of steps."""


def download(run: ClusterRun, what: str, target: Path | None = None) -> list[Path]:
    """Fetch results, and return the files and folders that were written.

    Parameters
    ----------
    run
        The run.
    what
        "report", "model" or the key of a step.
    target
        File (report, a single model) or folder; named after the run when left out.

    Raises
    ------
    ConfigError
        If there is no such step, it has not succeeded, or the target exists.
    ServerError
        If the server or the bucket does not have it any more.
    """
    states = {step.node.key: step.state for step in run.refresh()}
    if what == WHOLE:
        return [_report(run, target)]
    if what == MODELS:
        return _models(run, target)
    if what not in states:
        raise ConfigError(f"run {run.name} has no step {what!r}; there are report, model, "
                          f"{', '.join(states)}")  # fmt: skip
    place = target or Path(run.name) / what
    _require_free(place)
    return [_folder(run, _succeeded(run, what), place)]


def _succeeded(run: ClusterRun, key: str) -> Attempts:
    """Return what to take a step's results from: the newest workflow that finished it."""
    for workflow in reversed(run.workflows):
        step = attempts(workflow).get(key)
        if step is not None and step.phase == "Succeeded":
            return step
    raise ConfigError(
        f"step {key} of run {run.name} has not succeeded, so there is nothing to download; see "
        f"`dpaflow status {run.name}`, `dpaflow logs {run.name} {key}`"
    )


def _require_free(place: Path) -> None:
    if place.is_file() or (place.is_dir() and any(place.iterdir())):
        raise ConfigError(f"{place} exists; move it away, or name another place with -o")


def _report(run: ClusterRun, target: Path | None) -> Path:
    keys = [node.key for node in run.plan[1] if find_op(node.op).page]
    for key in reversed(keys):
        for workflow in reversed(run.workflows):
            step = attempts(workflow).get(key)
            if step is not None and step.phase == "Succeeded":
                place = target or Path(run.name) / f"{key}.html"
                if place.is_dir():
                    place = place / f"{key}.html"
                return _fetch(run, step, REPORT, place)
    raise ConfigError(f"run {run.name} has no report yet; see `dpaflow status {run.name}`")


def _models(run: ClusterRun, target: Path | None) -> list[Path]:
    keys = final_trainings(run.plan[1])
    steps = [(key, _succeeded(run, key)) for key in keys]
    if not steps:
        raise ConfigError(f"run {run.name} trains no model; see `dpaflow status {run.name}`")
    single = target is not None and target.suffix == ".safetensors"
    if single and len(steps) > 1:
        raise ConfigError(f"-o {target}: run {run.name} has {len(steps)} models; name a folder")
    written = []
    for key, step in steps:
        folder = target or Path(run.name)
        name = f"{key.removeprefix('final-train-')}.safetensors"
        place = target if single and target is not None else folder / name
        with TemporaryDirectory(prefix="dpaflow-") as temporary:
            found = _folder(run, step, Path(temporary) / key, only=MODEL) / MODEL
            if not found.is_file():
                raise ServerError(f"step {key} left no {MODEL} in its folder")
            place.parent.mkdir(parents=True, exist_ok=True)
            part = place.with_name(f".{place.name}.part")
            shutil.copyfile(found, part)
            part.replace(place)
        written.append(place)
    return written


def final_trainings(nodes: Sequence[Node]) -> list[str]:
    """Return the keys of the trainings whose models are results: no other training starts there.

    With a loop those of its final committee, if they are planned by now.
    """
    trainings = [node for node in nodes if node.op == "train"]
    final = [node.key for node in trainings if node.key.startswith("final-train-")]
    used = {key for node in trainings for key in needs(node)}
    return final or [node.key for node in trainings if node.key not in used]


def _fetch(run: ClusterRun, step: Attempts, artifact: str, target: Path) -> Path:
    node = step.outputs
    try:
        return run.client.artifact(step.workflow, str(node["id"]), artifact, target)
    except ServerError as error:
        raise ServerError(
            f"{artifact} of step {step.node.get('displayName')} cannot be downloaded: {error}. If "
            "the bucket was emptied, or the workflow deleted with `artifacts: delete`, it is gone",
            error.status,
        ) from error


def _folder(run: ClusterRun, step: Attempts, target: Path, only: str | None = None) -> Path:
    """Unpack the folder of a step; it appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as name:
        packed = _fetch(run, step, FOLDER, Path(name) / "folder.tgz")
        unpacked = Path(name) / "unpacked"
        try:
            with tarfile.open(packed, mode="r:gz") as archive:
                members = archive.getmembers()
                if only is not None:
                    members = [m for m in members if Path(m.name).parts[1:] == (only,)]
                archive.extractall(unpacked, members=members, filter="data")
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            raise ServerError(f"the folder of step {step.node.get('displayName')} is damaged or "
                              f"holds what it should not: {error}") from error  # fmt: skip
        inner = unpacked / FOLDER  # Argo packs a folder with its name
        if target.is_dir():
            target.rmdir()
        (inner if inner.is_dir() else unpacked).rename(target)
    return target
