"""What users do to runs on a cluster: submit, stop, resume, list."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from dpa_core.errors import ConfigError
from workflows.backends.argo.client import ArgoClient
from workflows.backends.argo.cluster_run import ClusterRun
from workflows.backends.argo.inputs import Upload, externalise, signatures
from workflows.backends.argo.render import render
from workflows.backends.argo.run import LABEL_RUN, LABEL_SEQUENCE, Run, plan_nodes, plan_run
from workflows.backends.argo.states import ENDED, decided_by, finished
from workflows.backends.argo.transport import ServerError
from workflows.graph import Node
from workflows.revisions import Revision, current_plan, require_start, revised_pipeline
from workflows.schema import Pipeline
from workflows.schema_paths import map_paths

HASH = "dpaflow/content-hash"
ENDPOINT = "AWS_ENDPOINT_URL"


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

    decided = decided_by(workflows)
    _, progress = current_plan(run.pipeline, run.revisions, decided, prints)
    numbers = [int(w["metadata"]["labels"].get(LABEL_SEQUENCE, 0)) for w in workflows]
    run = run._replace(progress=progress, sequence=1 + max(numbers, default=0))
    nodes, wanted = plan_run(run)
    there = finished(workflows)
    done = {key: print_ for key, print_ in wanted.items() if there.get(key) == print_}
    return Plan(run, [node for node in nodes if node.key not in done], done)


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
        run = run._replace(signatures=signatures(run.pipeline, uploads))
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
    if revision is None and run.phase != "Succeeded":
        why = _retry_differs(run)
        if not why:
            return _retry(run)
    else:
        why = "settings changed" if revision else "the last workflow had come to its end"
    if revision is not None:
        return _revise(run, revision, why)
    return _submit_rest(run.plan[0], run, why)


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
        return _submit_rest(run.plan[0], run, f"Argo cannot retry {name}: {error}")
    return Submitted(run.name, name, "Argo tries the steps again that did not succeed")


def _revise(run: ClusterRun, revision: Revision, why: str) -> Submitted:
    before = run.plan[0]
    planned = plan_next(before, run.workflows)
    require_start(revision, plan_run(planned.run)[0])
    revision, uploads = _moved(before, revision)
    made = before._replace(revisions=(*before.revisions, revision))
    known = [Upload("", url) for url in _urls(before.settings)]
    with endpoint(made.settings):
        new = signatures(made.settings, [*known, *uploads])
        made = made._replace(signatures={**made.signatures, **new})
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
        return urls.get(os.path.normpath(Path(revision.folder) / Path(value).expanduser()), value)

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
        If none is at work.
    """
    for workflow in reversed(client.summaries(name)):
        phase = (workflow.get("status") or {}).get("phase") or "Pending"
        found: str = workflow["metadata"]["name"]
        if phase not in ENDED:
            if now:
                client.terminate(found)
            else:
                client.stop(found, "stopped with `dpaflow stop`")
            return found
    raise ConfigError(f"run {name} is not at work; see `dpaflow list`")


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
