"""The `dpaflow` command: thin; what it does is elsewhere, and imported only when needed."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workflows.cli_cluster import (
    ContextFile,
    find_run,
    logs_of,
    resume_run,
    status_of,
    unused_resources,
    watch_run,
)
from workflows.cli_cluster import app as cluster_app
from workflows.cli_interchange import app as interchange_app
from workflows.cli_model import app as model_app

if TYPE_CHECKING:
    from collections.abc import Iterator

    from workflows.doctor import Check
    from workflows.run_folder import RunFolder
    from workflows.schema import Pipeline

app = typer.Typer(
    name="dpaflow",
    help="From labelled frames to a tested potential: one YAML, one command.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
model_app.add_typer(interchange_app)
app.add_typer(model_app, name="model")
app.add_typer(cluster_app)

TEMPLATES = Path(__file__).parent / "templates"
NAME_WIDTH = 24
"""Of the checks of a cluster, which come in groups."""
PipelineFile = Annotated[Path, typer.Argument(help="Pipeline YAML.")]
Run = Annotated[Path, typer.Argument(help="Folder of the run, or its id on the cluster.")]


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        typer.echo(f"dpaflow {version('dpaflow')}")
        raise typer.Exit


@app.callback()
def options(
    _show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options before the command."""
    _Settings.debug = debug


class _Settings:
    debug = False


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder to write to.")] = Path(),
    template: Annotated[
        str, typer.Option(help="demo, pretrain, finetune or concurrent.", show_default=True)
    ] = "pretrain",
) -> None:
    """Write an annotated pipeline.yaml to start from."""
    from dpa_core.errors import ConfigError

    names = sorted(path.stem for path in TEMPLATES.glob("*.yaml"))
    if template not in names:
        raise ConfigError(f"--template {template}: unknown; allowed: {', '.join(names)}")
    target = folder / "pipeline.yaml"
    if target.exists():
        raise ConfigError(f"{target} exists; move it away or name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    target.write_text((TEMPLATES / f"{template}.yaml").read_text(encoding="utf-8"), "utf-8")
    typer.echo(f"wrote {target}; next: edit it, `dpaflow validate {target}`")


@app.command()
def validate(pipeline: PipelineFile) -> None:
    """Check a pipeline file and list its steps; nothing is run."""
    from workflows.graph import levels
    from workflows.pipeline import plan
    from workflows.schema import load_pipeline

    loaded = load_pipeline(pipeline)
    nodes = plan(loaded)
    for number, level in enumerate(levels(nodes), start=1):
        typer.echo(f"{number}. {', '.join(node.key for node in level)}")
    for line in unused_resources(loaded):
        typer.echo(line, err=True)
    typer.echo(f"{pipeline}: valid, {len(nodes)} steps")


@app.command()
def schema() -> None:
    """Print the JSON schema of the pipeline file, for editors."""
    import json

    from workflows.schema import Pipeline

    typer.echo(json.dumps(Pipeline.model_json_schema(by_alias=True), indent=1, ensure_ascii=False))


@app.command()
def run(
    pipeline: PipelineFile,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/NAME if left out.")] = (
        None
    ),
) -> None:
    """Run a pipeline; steps that an earlier run into the same folder finished are kept."""
    from workflows import runner
    from workflows.revisions import read_revisions
    from workflows.run_folder import RunFolder
    from workflows.schema import load_pipeline

    loaded = load_pipeline(pipeline)
    folder = RunFolder((out or Path("runs") / loaded.name).resolve())
    earlier = read_revisions(folder)
    runner.start(loaded, pipeline, folder)
    for revision in earlier:
        change = f"{revision.start} on ({revision.changes or 'run again'})"
        typer.echo(f"{pipeline} holds again, without the change from {change} by `dpaflow resume`")
    _run(loaded, folder)


@app.command()
def resume(
    run: Run,
    start: Annotated[
        str | None, typer.Option("--from", help="Run this step and all behind it again, e.g. "
                                 "iter-000003/select.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE: change a setting from there on; "
                                       "may be repeated.")
    ] = None,
    context: ContextFile = None,
) -> None:  # fmt: skip
    """Continue a run that failed, was stopped or waits for you; only what is missing runs."""
    from dpa_core.errors import ConfigError
    from workflows import runner
    from workflows.revisions import parse_revision
    from workflows.run_folder import RunFolder
    from workflows.schema import load_pipeline

    if settings and start is None:
        raise ConfigError("--set needs --from STEP: the step from which on it holds, see status")
    if (there := find_run(run, context)) is not None:
        resume_run(there, start, settings or [])
        return
    folder = RunFolder(run.resolve())
    if not folder.pipeline.exists():
        raise ConfigError(f"{run}: no {folder.pipeline.name} in it; start with `dpaflow run`")
    loaded = load_pipeline(folder.pipeline)
    if start is not None:
        runner.revise(loaded, folder, parse_revision(start, settings or []))
    _run(loaded, folder)


def _run(pipeline: Pipeline, folder: RunFolder) -> None:
    from rich.console import Console

    from workflows import iterations, monitor, runner
    from workflows.local_run import LocalRun

    console = iterations.plain_console(Console())
    console.print(f"{pipeline.name}: running in {folder.root}", soft_wrap=True)
    source = LocalRun(folder)
    with monitor.progress(source, console, iterations.view) as watch:
        outcome = runner.drive(pipeline, folder, watch, runner.publish)
    result = outcome.result
    if result.paused:
        typer.echo(monitor.failure_report(result.states, source))
        return
    if not result.succeeded:
        report = monitor.failure_report(result.states, source, stopped=result.stopped)
        typer.echo(report, err=True)
        raise typer.Exit(130 if result.stopped else 1)
    if outcome.decision is not None:
        iterations.show_status(folder, console)
        typer.echo(runner.verdict(outcome.decision, source.name))
    typer.echo(monitor.summary(result.states))
    typer.echo(f"report: {folder.root / 'report.html'}")
    if outcome.stuck:
        raise typer.Exit(1)


@app.command()
def status(
    run: Run = Path(),
    every: Annotated[
        bool, typer.Option("--all", help="Also the steps of finished iterations.")
    ] = False,
    context: ContextFile = None,
) -> None:
    """Show the iterations and steps of a run."""
    if (there := find_run(run, context)) is not None:
        status_of(there, every=every)
        return
    from rich.console import Console

    from workflows import iterations
    from workflows.run_folder import RunFolder, is_running

    folder = RunFolder(run.resolve())
    live = is_running(folder)
    states = iterations.show_status(folder, Console(), every=every)
    if live:
        typer.echo("running")
    elif not iterations.is_done(states):
        typer.echo(f"not running; continue with: dpaflow resume {run}")


@app.command()
def watch(run: Run = Path(), context: ContextFile = None) -> None:
    """Show a run that goes on in another process or on the cluster, until it ends."""
    if (there := find_run(run, context)) is not None:
        watch_run(there)
        return
    from rich.console import Console

    from workflows import iterations
    from workflows.run_folder import RunFolder

    iterations.watch(RunFolder(run.resolve()), Console())


@app.command()
def logs(
    run: Run,
    step: Annotated[str | None, typer.Argument(help="Key of the step, see status.")] = None,
    lines: Annotated[int, typer.Option("-n", help="Last lines to show; 0 for all.")] = 50,
    context: ContextFile = None,
) -> None:
    """Show the log of a step; without a step, of those that failed or are running."""
    if (there := find_run(run, context)) is not None:
        logs_of(there, step, lines)
        return
    from ops.base import LOG
    from workflows.monitor import choose_steps
    from workflows.run_folder import RunFolder, is_running, read_states

    folder = RunFolder(run.resolve())
    states = {s.node.key: s.state for s in read_states(folder, live=is_running(folder))}
    chosen = choose_steps(states, step)
    for key in chosen:
        path = folder.steps / key / LOG
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        typer.echo(f"==> {path} ({states[key]})")
        typer.echo("\n".join(text.splitlines()[-lines:]))
    if not chosen:
        typer.echo(f"no step failed or is running; name one of: {', '.join(states)}")


@app.command()
def doctor(
    place: Annotated[
        Path | None, typer.Argument(help="Folder of runs; with --cluster: pipeline YAML.")
    ] = None,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Check the Argo server and its cluster instead.")
    ] = False,
    context: Annotated[
        Path | None, typer.Option(help="Context file: where the Argo server is.")
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe/--no-probe", help="Also start pods that look from inside.")
    ] = True,
    wait: Annotated[float, typer.Option(help="Seconds those pods may take.")] = 300.0,
) -> None:
    """Check this machine or, with --cluster, the cluster: what is missing and what to do."""
    from dpa_core.errors import ConfigError
    from workflows.doctor import check, lines

    if not cluster and (context is not None or (place is not None and place.is_file())):
        raise ConfigError("a context file or a pipeline is of use with --cluster only: "
                          f"dpaflow doctor --cluster {place or ''}")  # fmt: skip
    groups = _ask_cluster(place, context, probe, wait) if cluster else [check(place or Path())]
    failed = False
    for checks in groups:
        for line in lines(checks, NAME_WIDTH if cluster else 0):
            typer.echo(line)
        failed |= any(item.verdict == "error" for item in checks)
    if failed:
        raise typer.Exit(1)


def _ask_cluster(
    pipeline: Path | None, context: Path | None, probe: bool, wait: float
) -> Iterator[list[Check]]:
    from workflows.backends.argo.context import load_context
    from workflows.backends.argo.preflight import stages
    from workflows.schema import load_pipeline

    loaded = None if pipeline is None else load_pipeline(pipeline)
    return stages(load_context(context), loaded, probe=probe, wait=wait)


def main() -> None:
    """Run the command; an error we raise on purpose is one message, without traceback."""
    from dpa_core.errors import DPAError

    try:
        # --debug is an option of the command as a whole, wherever it stands
        app(sorted(sys.argv[1:], key=lambda argument: argument != "--debug"))
    except (DPAError, OSError) as error:
        if _Settings.debug:
            raise
        typer.echo(f"error: {error}{_remedy(error)}", err=True)
        sys.exit(getattr(error, "exit_code", 1))


def _remedy(error: Exception) -> str:
    """Return what to do about an error of the operating system."""
    if not isinstance(error, OSError):
        return ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "; free some space, then give the same command again"
    return "; check the path, its permissions and the disk"


if __name__ == "__main__":
    main()
