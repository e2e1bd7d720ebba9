"""A run as an Argo Workflow object: made by dflow without any server, then hardened.

dflow makes the graph (a DAG of one task a step) and the templates; `harden` adds what dflow
cannot express. A template's script is the step's request itself, which `ops.pod` reads: no
generated code, no settings of dflow (which would bring credentials), four times smaller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ops.base import StepRequest
from ops.catalog import OPS, OpSpec, find_op
from ops.pod import DEFAULTS, IN, WORK
from workflows.backends.argo.harden import harden
from workflows.backends.argo.limits import check_pods, check_size
from workflows.backends.argo.pods import FOLDER, PLOTS, REPORT, SUMMARY, pod_options
from workflows.backends.argo.run import ADVANCE, Run, plan_run, script
from workflows.graph import Node, needs

ENTRYPOINT = "pipeline"
FILES = {FOLDER: "folder.tgz", SUMMARY: "summary.tgz", REPORT: "report.html", PLOTS: "plots"}
"""Name in the bucket of every artifact of a step."""


def render(run: Run, done: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the workflow of a run as a complete Kubernetes object.

    Parameters
    ----------
    run
        What to do.
    done
        Steps finished by earlier workflows of the run, key -> fingerprint. What still has
        the same fingerprint is not done again; its results are read where they are.

    Raises
    ------
    ConfigError
        If settings contradict each other, or the object is larger than Argo takes.
    """
    nodes, prints = plan_run(run)
    finished = {key for key in prints if (done or {}).get(key) == prints[key]}
    todo = [node for node in nodes if node.key not in finished]
    check_pods(len(todo) + run.goes_on, run)
    with offline(run):
        manifest = _to_argo(run, todo, prints)
    manifest = harden(manifest, run, {node.key: node for node in todo}, prints)
    check_size(manifest, run)
    return manifest


def artifact_key(run: Run, key: str, fingerprint: str, artifact: str) -> str:
    """Return where in the bucket an artifact of a step is."""
    prefix = run.pipeline.cluster.storage.prefix
    return f"{prefix}/{run.name}/{key}/{fingerprint}/{FILES[artifact]}"


def fingerprint_of(node: Mapping[str, Any]) -> str | None:
    """Return the fingerprint of the step that a node of a workflow's status ran."""
    for artifact in (node.get("outputs") or {}).get("artifacts") or []:
        if artifact["name"] == FOLDER:
            parts = str((artifact.get("s3") or {}).get("key", "")).split("/")
            return parts[-2] if len(parts) > 2 else None
    return None


@contextmanager
def offline(run: Run) -> Iterator[None]:
    """Keep dflow from the network, from environment variables and from its own credentials."""
    from dflow import config, s3_config

    kept = dict(config), dict(s3_config)
    image = run.pipeline.cluster.image
    config.update(mode="default", token=None, archive_mode="tar", util_image=image,
                  save_path_as_parameter=False, register_tasks=False, workflow_annotations={},
                  namespace="dpaflow")  # fmt: skip
    s3_config.update(access_key="", secret_key="", prefix="", repo_key=None, repo=None,
                     storage_client=None)  # fmt: skip
    try:
        yield
    finally:
        for live, before in zip((config, s3_config), kept):
            live.update(before)


def _to_argo(run: Run, todo: list[Node], prints: Mapping[str, str]) -> dict[str, Any]:
    from dflow import DAG, Workflow

    dag = DAG(ENTRYPOINT)
    tasks: dict[str, Any] = {}
    for node in todo:
        tasks[node.key] = _task(run, node, prints, tasks)
        dag.add(tasks[node.key])
    if run.goes_on:
        dag.add(_advance(run, tasks))
    workflow = Workflow(run.name, dag=dag, id=run.workflow, parameters=run.parameters(),
                        parallelism=run.settings.cluster.parallelism)  # fmt: skip
    # every template is another one; to compare all with all takes minutes for a thousand
    workflow.deduplicate_templates = lambda: None  # type: ignore[method-assign]
    found: dict[str, Any] = workflow.to_dict()
    return found


def _task(run: Run, node: Node, prints: Mapping[str, str], tasks: Mapping[str, Any]) -> Any:
    from dflow import InputArtifact, Inputs, S3Artifact, Task
    from dflow.op_template import ScriptOPTemplate

    op = find_op(node.op)
    wanted = SUMMARY if op.light else FOLDER
    sources = {}
    for key in sorted(needs(node)):
        if key in tasks:
            sources[key] = tasks[key].outputs.artifacts[wanted]
        else:
            sources[key] = S3Artifact(key=artifact_key(run, key, prints[key], wanted))
    inputs = {key: InputArtifact(path=f"{DEFAULTS[IN]}/{key}") for key in sources}
    options = pod_options(run, node)
    template = ScriptOPTemplate(
        name=node.key,
        inputs=Inputs(artifacts=inputs),
        outputs=_outputs(run, node, prints[node.key], op),
        command=["python", "-m", "ops.pod"],
        script=script(_request(run, node, prints[node.key])),
        **options,
    )
    return Task(node.key, template, artifacts=sources)


def _request(run: Run, node: Node, fingerprint: str) -> dict[str, Any]:
    settings = run.settings
    timeout = settings.cluster.resources_for(node.key, node.op).timeout
    return StepRequest(
        key=node.key,
        op=node.op,
        config=node.config,
        inputs=node.inputs,
        fingerprint=fingerprint,
        timeout=timeout or settings.execution.timeout,
    ).model_dump(mode="json", exclude_defaults=True)


def _outputs(run: Run, node: Node, fingerprint: str, op: OpSpec) -> Any:
    from dflow import OutputArtifact, OutputParameter, Outputs, S3Artifact

    out = f"{DEFAULTS[WORK]}/out"

    def artifact(name: str, path: str, *, packed: bool) -> OutputArtifact:
        place = S3Artifact(key=artifact_key(run, node.key, fingerprint, name))
        archive: Any = "tar" if packed else None
        # optional, as a step that failed has none: its own exit code shall be what is reported
        return OutputArtifact(path=f"{out}/{path}", save=[place], optional=True, archive=archive)

    artifacts = {
        FOLDER: artifact(FOLDER, "folder", packed=True),
        SUMMARY: artifact(SUMMARY, "summary", packed=True),
    }
    if op.page:
        artifacts[REPORT] = artifact(REPORT, "report.html", packed=False)
    if op is OPS["test"]:
        artifacts[PLOTS] = artifact(PLOTS, "plots", packed=False)
    parameters = {}
    if op.result:
        path = f"{out}/result.json"
        parameters["result"] = OutputParameter(value_from_path=path, default="{}")
    return Outputs(parameters=parameters, artifacts=artifacts)


def _advance(run: Run, tasks: Mapping[str, Any]) -> Any:
    """Return the last task: it reads the decision and submits what follows."""
    from dflow import InputParameter, Inputs, Task
    from dflow.op_template import ScriptOPTemplate

    node = Node(ADVANCE, ADVANCE, {})
    document = '{"workflow": "{{workflow.name}}", "decision": {{inputs.parameters.decision}}}'
    template = ScriptOPTemplate(
        name=ADVANCE,
        inputs=Inputs(parameters={"decision": InputParameter()}),
        command=["python", "-m", "workflows.backends.argo.advance"],
        script=document,
        **pod_options(run, node),
    )
    decision = tasks[run.decision].outputs.parameters["result"]
    return Task(ADVANCE, template, parameters={"decision": decision},
                dependencies=list(tasks.values()))  # fmt: skip
