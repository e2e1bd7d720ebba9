"""What users do to runs on a cluster: submit, stop, resume, list."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from dpa_core.errors import ConfigError, DPAError
from ops.storage import split_part
from workflows.backends.argo.client import ArgoClient
from workflows.backends.argo.cluster_run import ClusterRun, no_such_run
from workflows.backends.argo.inputs import Upload, externalise, signatures
from workflows.backends.argo.render import render
from workflows.backends.argo.run import (
    ADVANCE,
    ENDED,
    LABEL_RUN,
    LABEL_SEQUENCE,
    Run,
    load_run,
    plan_nodes,
    plan_run,
)
from workflows.backends.argo.states import Carried, carried, decided_by, finished
from workflows.backends.argo.transport import ServerError
from workflows.graph import Node
from workflows.revisions import Revision, current_plan, require_start, revised_pipeline
from workflows.schema import Pipeline
from workflows.schema_paths import map_paths

HASH = "dpaflow/content-hash"
ENDPOINT = "AWS_ENDPOINT_URL"
SETTLE = 1.0
"""Seconds in which a workflow appears that `advance` was just about to submit."""

log = logging.getLogger(__name__)


class Plan(NamedTuple):
    """What is to be submitted next.

    Attributes
    ----------
    run
        The run.
    todo
        Steps that the workflow has; [] if all are done.
    done
        Steps that earlier workflows did, key -> fingerprint.
    """

    run: Run
    todo: list[Node]
    done: dict[str, str]


class Submitted(NamedTuple):
    """A workflow that was created, or restarted.

    Attributes
    ----------
    run
        Id of its run.
    workflow
        Its name; "" if nothing was left to do.
    told
        What was done, and why.
    """

    run: str
    workflow: str
    told: str


def plan_next(run: Run, workflows: Sequence[Mapping[str, Any]]) -> Plan:
    """Return the next workflow of a run: what earlier ones finished is left out.

    Parameters
    ----------
    run
        Pipeline and revisions; how far the loop has come is found out here.
    workflows
        All workflows of the run so far.
    """

    def prints(nodes: Sequence[Node]) -> dict[str, str]:
        return plan_nodes(run, nodes)[1]

    numbers = [int(w["metadata"]["labels"].get(LABEL_SEQUENCE, 0)) for w in workflows]
    here = [workflow for workflow in workflows if _same_place(run, workflow)]
    before = _carried(here[0]) if here else Carried()
    decided = decided_by(here, before)
    _, progress = current_plan(run.pipeline, run.revisions, decided, prints)
    run = replace(run, progress=progress, sequence=1 + max(numbers, default=0))
    nodes, wanted = plan_run(run)
    there = {**before.steps, **finished(here)}
    done = {key: print_ for key, print_ in wanted.items() if there.get(key) == print_}
    if run.goes_on:
        done.pop(run.decision, None)  # finished, but what it decided cannot be read
    return Plan(run, [node for node in nodes if node.key not in done], done)


def _same_place(run: Run, workflow: Mapping[str, Any]) -> bool:
    """Return whether a workflow left its results where this run looks for them."""
    try:
        other = load_run(workflow).pipeline.cluster.storage
    except ConfigError:  # made by another version: its results are found by their fingerprints
        return True
    ours = run.pipeline.cluster.storage
    return all(
        getattr(ours, name) == getattr(other, name) for name in ("bucket", "prefix", "repository")
    )


def _carried(workflow: Mapping[str, Any]) -> Carried:
    """Return what a workflow took over from others, which are gone by now."""
    try:
        run = load_run(workflow)
        return carried(workflow, run, plan_run(run)[1]) if run.sequence > 1 else Carried()
    except ConfigError:
        return Carried()


def prepare(pipeline: Pipeline) -> tuple[Run, list[Upload]]:
    """Return the first workflow's run, and what has to be copied to the bucket for it."""
    changed, uploads = externalise(pipeline)
    return Run(changed), uploads


def submit(pipeline: Pipeline, client: ArgoClient) -> Submitted:
    """Copy local files to the bucket and submit what is not done yet.

    Raises
    ------
    ConfigError
        If a workflow of the same run is still at work, or the pipeline does not fit.
    ServerError
        If the server or the bucket does not do what it is asked to.
    """
    client.require_version()
    run, uploads = prepare(pipeline)
    workflows = client.list(run.name)
    require_idle(run.name, workflows)
    with endpoint(pipeline):
        run = replace(run, signatures=signatures(run.pipeline, uploads))
        planned = plan_next(run, workflows)
        if not planned.todo:
            return Submitted(run.name, "", f"all {len(planned.done)} steps are done already")
        manifest = render(planned.run, planned.done)  # may refuse: before anything is copied
        copy(uploads)
    client.create(manifest)
    return Submitted(run.name, planned.run.workflow, _told(planned))


def _told(planned: Plan) -> str:
    kept = f", {len(planned.done)} done by earlier workflows are kept" if planned.done else ""
    return f"{len(planned.todo)} steps{kept}"


def copy(uploads: Sequence[Upload]) -> None:
    """Copy local files to the bucket; what is there already is left alone."""
    from ops.storage import upload_content

    for upload in uploads:
        upload_content(upload.path, upload.url)


@contextmanager
def endpoint(pipeline: Pipeline) -> Iterator[None]:
    """Let boto3 find the pipeline's bucket, unless the environment says where it is from here."""
    found = pipeline.cluster.storage.endpoint
    added = found is not None and ENDPOINT not in os.environ
    if added:
        os.environ[ENDPOINT] = str(found)
    try:
        yield
    finally:
        if added:
            os.environ.pop(ENDPOINT, None)


def require_idle(name: str, workflows: Sequence[Mapping[str, Any]]) -> None:
    """Raise ConfigError if a workflow of the run has not ended."""
    for workflow in workflows:
        if ((workflow.get("status") or {}).get("phase") or "Pending") not in ENDED:
            raise ConfigError(
                f"run {name}: workflow {workflow['metadata']['name']} is at work; follow it with "
                f"`dpaflow watch {name}`, end it with `dpaflow stop {name}`, or give the pipeline "
                "another name"
            )


def resume(run: ClusterRun, revision: Revision | None = None) -> Submitted:
    """Go on with a run that failed, was stopped or waits for the user.

    Parameters
    ----------
    run
        The run.
    revision
        Settings to change from a step on; that and all behind it is done again.

    Raises
    ------
    ConfigError
        If it is at work, has nothing left to do, or has no such step.
    """
    run.refresh()
    require_idle(run.name, run.workflows)
    made = run.plan[0]
    if revision is not None or run.phase != "Succeeded":
        made = _with_data_of_today(made)
    if revision is not None:
        return _revise(made, run, revision, "settings changed")
    why = "the last workflow had come to its end"
    if made.signatures != run.plan[0].signatures:
        why = "data behind s3:// paths changed"
    elif run.phase != "Succeeded":
        why = _retry_differs(run)
        if not why:
            return _retry(run)
    return _submit_rest(made, run, why)


def _with_data_of_today(run: Run) -> Run:
    """Return the run with what is behind its URLs now, not when it was submitted."""
    if not run.signatures:
        return run
    known = [Upload("", url) for url in _urls(run.settings) if url not in run.signatures]
    try:
        with endpoint(run.settings):
            found = signatures(run.settings, known)
    except DPAError as error:
        log.warning("cannot look whether data changed since the run was submitted: %s", error)
        return run
    return replace(run, signatures={**run.signatures, **found})


def _retry_differs(run: ClusterRun) -> str:
    """Return why Argo's own retry would not do what a new workflow does; "" if it would."""
    newest, (made, nodes, prints) = run.newest, run.plan
    there = {template["name"] for template in newest["spec"].get("templates") or []}
    done = {node.key: prints[node.key] for node in nodes if node.key not in there}
    notes = newest["metadata"].get("annotations") or {}
    again = render(made, done)["metadata"]["annotations"]
    if notes.get(HASH) != again[HASH]:
        return "this version of dpaflow makes the steps in another way"
    return ""


def _retry(run: ClusterRun) -> Submitted:
    name = run.newest["metadata"]["name"]
    try:
        run.client.retry(name)
    except ServerError as error:
        run.refresh()
        if not run.running:
            return _submit_rest(run.plan[0], run, f"Argo cannot retry {name}: {error}")
        # it does, although the answer was lost: another workflow would do the same steps
    return Submitted(run.name, name, "Argo tries the steps again that did not succeed")


def _revise(before: Run, run: ClusterRun, revision: Revision, why: str) -> Submitted:
    planned = plan_next(before, run.workflows)
    require_start(revision, plan_run(planned.run)[0])
    revision, uploads = _moved(before, revision)
    made = replace(before, revisions=(*before.revisions, revision))
    known = [Upload("", url) for url in _urls(before.settings)]
    with endpoint(made.settings):
        new = signatures(made.settings, [*known, *uploads])
        made = replace(made, signatures={**made.signatures, **new})
        plan_next(made, run.workflows)  # refuses what does not fit, before anything is copied
        copy(uploads)
    return _submit_rest(made, run, why)


def _urls(pipeline: Pipeline) -> list[str]:
    """Return the URLs of a pipeline."""
    found: list[str] = []

    def note(path: str) -> str:
        found.append(path)
        return path

    map_paths(pipeline, note)
    return [path for path in found if "://" in path]


def _moved(run: Run, revision: Revision) -> tuple[Revision, list[Upload]]:
    """Return a revision whose local files are URLs, and what has to be copied there."""
    changed = revised_pipeline(run.pipeline, (*run.revisions, revision))
    uploads = externalise(changed)[1]
    urls = {upload.path: upload.url for upload in uploads}

    def move(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: move(item) for name, item in value.items()}
        if isinstance(value, list):
            return [move(item) for item in value]
        if not isinstance(value, str):
            return value
        path = os.path.normpath(Path(revision.folder) / Path(value).expanduser())
        file, part = split_part(path)
        return urls[file] + part if file in urls else value

    return revision.model_copy(update={"changes": move(revision.changes)}), uploads


def _submit_rest(made: Run, run: ClusterRun, why: str) -> Submitted:
    planned = plan_next(made, run.workflows)
    if not planned.todo:
        raise ConfigError(
            f"run {run.name} is done: nothing is left to resume; to change settings and run a part "
            f"again: dpaflow resume {run.name} --from STEP --set KEY=VALUE"
        )
    run.client.create(render(planned.run, planned.done))
    return Submitted(run.name, planned.run.workflow, f"{_told(planned)}; a new workflow: {why}")


def stop(client: ArgoClient, name: str, *, now: bool = False) -> str:
    """End the workflow of a run that is at work, and return its name.

    Parameters
    ----------
    client, name
        The server and the run.
    now
        Without waiting for steps to save their state.

    Raises
    ------
    ConfigError
        If there is no such run, or none is at work.
    """
    workflows = client.summaries(name)
    if not workflows:
        raise ConfigError(no_such_run(client, name))
    found = _at_work(workflows)
    if found is None:
        raise ConfigError(
            f"run {name} is not at work, so there is nothing to stop; see `dpaflow list`"
        )
    stopped = _stop(client, found, now=now)
    templates = (stopped.get("spec") or {}).get("templates") or []
    if any(template.get("name") == ADVANCE for template in templates):
        time.sleep(SETTLE)
        another = _at_work(client.summaries(name))
        if another not in (None, found):
            _stop(client, str(another), now=now)
            return str(another)
    return found


def _at_work(workflows: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the newest workflow of a run that has not ended."""
    for workflow in reversed(workflows):
        if ((workflow.get("status") or {}).get("phase") or "Pending") not in ENDED:
            return str(workflow["metadata"]["name"])
    return None


def _stop(client: ArgoClient, workflow: str, *, now: bool) -> dict[str, Any]:
    if now:
        return client.terminate(workflow)
    return client.stop(workflow, "stopped with `dpaflow stop`")


class Listed(NamedTuple):
    """A run in the list: its id, phase of its latest workflow, their number, times."""

    name: str
    phase: str
    workflows: int
    started: str
    finished: str


def list_runs(client: ArgoClient) -> list[Listed]:
    """Return all runs on the server, the one that began last at the end."""
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for workflow in client.summaries():
        runs.setdefault(workflow["metadata"]["labels"][LABEL_RUN], []).append(workflow)
    found = []
    for name, workflows in runs.items():
        first, last = (workflows[k].get("status") or {} for k in (0, -1))
        times = first.get("startedAt") or "", last.get("finishedAt") or ""
        found.append(Listed(name, last.get("phase") or "Pending", len(workflows), *times))
    return sorted(found, key=lambda item: item.started or "9999")
