"""Commands for runs on a cluster; what they do is in `workflows.backends.argo`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from workflows.backends.argo.client import ArgoClient
    from workflows.backends.argo.cluster_run import ClusterRun
    from workflows.backends.argo.control import Submitted
    from workflows.schema import Pipeline

app = typer.Typer()
RUN_ID = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


def _run_id(name: str) -> str:
    """Return the id of a run; the pipeline's name, as its file has it, will do."""
    from workflows.graph import slug

    return slug(name)


PipelineFile = Annotated[Path, typer.Argument(help="Pipeline YAML.")]
RunId = Annotated[str, typer.Argument(help="Id of the run, see `dpaflow list`.", callback=_run_id)]
ContextFile = Annotated[
    Path | None,
    typer.Option("--context", help="Where the Argo server is; ~/.config/dpaflow/context.yaml."),
]


def connect(context: Path | None) -> ArgoClient:
    """Return a client of the server that the context names."""
    from workflows.backends.argo.client import ArgoClient
    from workflows.backends.argo.context import load_context

    return ArgoClient(load_context(context))


def find_run(run: Path, context: Path | None) -> ClusterRun | None:
    """Return the run on the cluster that is meant, None if it is a folder on this machine.

    An existing folder with a run in it is local; so is whatever cannot be the id of a run.
    """
    from workflows.run_folder import RunFolder

    name = _run_id(str(run))
    local = RunFolder(run).dflow.is_dir() or not RUN_ID.fullmatch(name)
    if local and context is None:
        return None
    from workflows.backends.argo.cluster_run import ClusterRun
    from workflows.backends.argo.transport import ServerError

    found = ClusterRun(connect(context), name)
    try:
        found.refresh()
    except ServerError as error:
        if error.status == 0:
            text = f"{run} is no folder with a run, and no cluster can be asked: {error}"
            raise ServerError(text) from error
        raise
    return found


def _load(path: Path) -> Pipeline:
    """Load a pipeline that can run on a cluster: its name is that of the run there."""
    from dpa_core.errors import ConfigError
    from workflows.backends.argo.run import Run
    from workflows.schema import load_pipeline

    loaded = load_pipeline(path)
    try:
        Run(loaded).workflow  # noqa: B018  (it raises)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return loaded


@app.command()
def render(
    pipeline: PipelineFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write; - for the terminal.")],
) -> None:
    """Write the Argo workflow of a pipeline; no server is asked, nothing is copied."""
    from dpa_core.errors import ConfigError
    from dpa_core.yaml_file import to_yaml
    from ops.files import write_text
    from workflows.backends.argo.control import prepare
    from workflows.backends.argo.limits import measure
    from workflows.backends.argo.render import render as make

    loaded = _load(pipeline)
    if out.is_dir():
        raise ConfigError(f"--out {out}: that is a folder; name a file, or - for the terminal")
    run, uploads = prepare(loaded)
    manifest = make(run)
    text = to_yaml(manifest)
    if str(out) == "-":
        typer.echo(text, nl=False)
    else:
        write_text(out, text)
    size = measure(manifest)
    typer.echo(
        f"{run.workflow}: {size.pods} pods, {size.spec / 1024:.0f} KiB"
        + ("" if str(out) == "-" else f", written to {out}"), err=True,
    )  # fmt: skip
    for line in unused_resources(loaded):
        typer.echo(line, err=True)
    if uploads:
        typer.echo("`dpaflow submit` would copy to the bucket:", err=True)
    for upload in uploads:
        typer.echo(f"  {upload.path} -> {upload.url}", err=True)


def unused_resources(pipeline: Pipeline) -> list[str]:
    """Return a warning for every entry of cluster.resources that no step uses, mostly a typo."""
    from workflows.backends.argo.context import Context
    from workflows.backends.argo.preflight.steps import check_entries
    from workflows.backends.argo.scene import set_scene

    checks = check_entries(set_scene(Context(), pipeline)) if pipeline.cluster.resources else ()
    return [f"warning: {c.found}: {c.advice}" for c in checks if c.verdict == "error"]


@app.command()
def submit(
    pipeline: PipelineFile,
    context: ContextFile = None,
    follow: Annotated[bool, typer.Option("--watch", help="Show the run until it ends.")] = False,
    no_preflight: Annotated[
        bool, typer.Option("--no-preflight", help="Submit without looking at the cluster first.")
    ] = False,
) -> None:
    """Run a pipeline on the cluster; steps that earlier submits finished are kept."""
    from workflows.backends.argo.control import submit as start

    loaded = _load(pipeline)
    client = connect(context)
    if not no_preflight:
        _preflight(client, loaded)
    done = start(loaded, client)
    _show(done, client)
    if follow:
        _watch(client, done.run)


def _preflight(client: ArgoClient, pipeline: Pipeline) -> None:
    """Print what is wrong with the cluster for this pipeline, and end if it cannot run."""
    from workflows.backends.argo.preflight import preflight
    from workflows.doctor import lines

    checks = preflight(client.context, pipeline, probe=False)
    bad = [item for item in checks if item.verdict != "ok"]
    for line in lines(bad) if bad else []:
        typer.echo(line, err=True)
    if any(item.verdict == "error" for item in bad):
        typer.echo(
            "nothing was submitted; put this right (`dpaflow doctor --cluster` looks again), or "
            "submit with --no-preflight", err=True,
        )  # fmt: skip
        raise typer.Exit(1)


def _show(done: Submitted, client: ArgoClient) -> None:
    typer.echo(f"run {done.run}: {done.told}")
    if not done.workflow:
        typer.echo(f"report: dpaflow download {done.run} report")
        return
    typer.echo(f"workflow {done.workflow}: {client.context.dashboard(done.workflow)}")
    typer.echo(f"next: dpaflow watch {done.run} | status {done.run} | logs {done.run} STEP | "
               f"stop {done.run}")  # fmt: skip


def _watch(client: ArgoClient, name: str) -> None:
    from workflows.backends.argo.cluster_run import ClusterRun

    watch_run(ClusterRun(client, name))


def watch_run(run: ClusterRun) -> None:
    """Show a run until it ends; the command's exit code is that of the run."""
    from rich.console import Console

    from workflows.backends.argo.watch import watch

    try:
        code = watch(run, Console())
    except KeyboardInterrupt:
        typer.echo(f"the run goes on; dpaflow watch {run.name}, or dpaflow stop {run.name}")
        code = 130
    if code:
        raise typer.Exit(code)


def status_of(run: ClusterRun, *, every: bool) -> None:
    """Show the iterations and steps of a run, and what is wrong with it."""
    from rich.console import Console

    from workflows.backends.argo.watch import show_status

    show_status(run, Console(), every=every)


def logs_of(run: ClusterRun, step: str | None, lines: int) -> None:
    """Show the log of a step; without a step, of those that failed or are running."""
    from workflows.monitor import choose_steps

    states = {state.node.key: state.state for state in run.refresh()}
    chosen = choose_steps(states, step)
    for key in chosen:
        text = run.log(key, lines or None).splitlines()
        typer.echo(f"==> {run.name} {key} ({states[key]})")
        typer.echo("\n".join(text[-lines:]) or "(no log: its pod has not begun, or is gone)")
    if not chosen:
        typer.echo(f"no step failed or is running; name one of: {', '.join(states)}")


def resume_run(run: ClusterRun, start: str | None, settings: list[str]) -> None:
    """Go on with a run, with changed settings from a step on if `start` names one."""
    from workflows.backends.argo.control import resume
    from workflows.revisions import parse_revision

    revision = None if start is None else parse_revision(start, settings)
    _show(resume(run, revision), run.client)


@app.command("list")
def list_runs(context: ContextFile = None) -> None:
    """List the runs on the cluster."""
    from workflows.backends.argo.control import list_runs as listed

    client = connect(context)
    runs = listed(client)
    if not runs:
        place = f"{client.context.server}, namespace {client.context.namespace}"
        typer.echo(f"no runs at {place}; start one with `dpaflow submit pipeline.yaml`")
        return
    width = max(len(run.name) for run in runs)
    for run in runs:
        count = f"{run.workflows} workflow{'s' if run.workflows > 1 else ''}"
        typer.echo(f"{run.name:<{width}}  {run.phase:<9}  {run.started:<20}  {count}")


@app.command()
def stop(
    run: RunId,
    context: ContextFile = None,
    now: Annotated[
        bool, typer.Option("--now", help="At once; steps cannot save their state.")
    ] = False,
) -> None:
    """Stop a run on the cluster; finished steps are kept, `dpaflow resume` goes on."""
    from workflows.backends.argo.control import stop as end

    name = end(connect(context), run, now=now)
    typer.echo(f"workflow {name} is being stopped; go on later with: dpaflow resume {run}")


@app.command()
def download(
    run: RunId,
    what: Annotated[str, typer.Argument(help="report, model or the key of a step.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File or folder; named after the run.")
    ] = None,
    context: ContextFile = None,
) -> None:
    """Fetch the report, the models or a step's folder of a run on the cluster."""
    from workflows.backends.argo.cluster_run import ClusterRun
    from workflows.backends.argo.download import download as fetch

    for path in fetch(ClusterRun(connect(context), run), what, out):
        typer.echo(path)
