"""A step in a pod: `python -m ops.pod REQUEST.json`, without dflow, cluster or credentials.

    $DPAFLOW_IN/KEY       folders of earlier steps, put there before the pod starts
    $DPAFLOW_WORK         scratch space; what the step leaves for others is in its `out`:
        folder/           all that the step wrote, only if it succeeded
        summary/          the small files of it, enough for reports and decisions
        report.html       its page, for the dashboard
        plots/            its figures
        result.json       a few numbers, shown with the step
    $DPAFLOW_VERSION      version of dpaflow that made the request; another one refuses it
    $DPAFLOW_STEPS        if set, where steps work instead: a volume that outlives the pod, so
                          that the next attempt of a training finds its checkpoint

The exit code says whether another attempt may help, see `EXIT_CODES`; the reason of a failure
goes to the file whose content Kubernetes shows with the pod.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from types import FrameType

from dpa_core.config import parse_config
from dpa_core.errors import ConfigError, DPAError
from ops import base, catalog
from ops.files import write_json
from ops.storage import is_outside

IN, WORK, TERMINATION_LOG = "DPAFLOW_IN", "DPAFLOW_WORK", "DPAFLOW_TERMINATION_LOG"
DEFAULTS = {
    IN: "/dpaflow/in",
    WORK: "/dpaflow/work",
    TERMINATION_LOG: "/dev/termination-log",
}
EXIT_CODES: Mapping[base.Kind, int] = {
    "fatal": 1,
    "config": 2,
    "transient": 75,
    "paused": 76,
    "timeout": 124,
    "killed": 137,
    "interrupted": 143,
}
"""Exit code of a pod by kind of failure."""
RETRIED = (EXIT_CODES["transient"], EXIT_CODES["killed"], EXIT_CODES["interrupted"])
"""Exit codes after which another attempt may help; not after a mistake or a bug."""
SMALL = 4 * 1024**2
"""Bytes. Figures, arrays and logs up to this size belong to the summary."""
TABLES = (".json", ".csv")
READABLE = (".html", ".png", ".svg", ".txt", ".md", ".yaml", ".npz", ".out", ".log")
MAX_REASON = 2000
"""Characters of the reason; Kubernetes takes 4096 bytes."""


def main() -> int:
    """Run the step and return the exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    source = Path(sys.argv[1])
    try:
        require_version(os.environ.get("DPAFLOW_VERSION"))
        document = json.loads(source.read_text(encoding="utf-8"))
        request = parse_config(base.StepRequest, document, str(source))
        run(request)
    except base.StepError as error:
        reason = f"{request.key}: {error.status.reason}"
        told = error.status.reason.partition("\n")[0]
        logged = any(told in line for line in str(error).splitlines()[1:])
        return report_failure(error.status.kind or "fatal", reason, said=logged)
    except SystemExit:
        return report_failure("interrupted", "the pod was told to stop")
    except DPAError as error:
        return report_failure("config" if error.exit_code == 2 else "fatal", str(error))
    except OSError as error:
        return report_failure("transient", str(error))
    return 0


def require_version(wanted: str | None) -> None:
    """Refuse what another version made: equal settings may mean other results to this one.

    Parameters
    ----------
    wanted
        Version of dpaflow that made the workflow; None if it is not known.

    Raises
    ------
    ConfigError
        If it is not the one of this image.
    """
    here = version("dpaflow")
    if wanted not in (None, here):
        raise ConfigError(
            f"the workflow was made by dpaflow {wanted}, the image of this step holds {here}; "
            "name an image of the same version (cluster.image, cluster.resources.STEP.image), "
            "then `dpaflow resume`"
        )


def run(request: base.StepRequest) -> Path:
    """Run a step as the environment says, and return the folder `out`.

    Raises
    ------
    StepError
        The step failed.
    """
    inputs = base.map_paths(request.inputs, lambda path: _resolve(str(path)))
    work = _place(WORK)
    outdir = Path(os.environ.get("DPAFLOW_STEPS") or work / "steps") / request.key
    with _shown(outdir / base.LOG):
        base.run_step(request.model_copy(update={"inputs": inputs}), outdir)
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    _pack(outdir, out, catalog.find_op(request.op))
    return out


def _place(name: str) -> Path:
    return Path(os.environ.get(name) or DEFAULTS[name])


def _resolve(path: str) -> str:
    """Turn "KEY:sub/path" into a path below $DPAFLOW_IN; absolute paths and URLs stay."""
    if is_outside(path):
        return path
    key, _, rest = path.partition(":")
    return str(_place(IN) / key / rest)


def _pack(outdir: Path, out: Path, op: catalog.OpSpec) -> None:
    """Put the results where the pod's outputs are taken from; `folder` comes last."""
    for path in sorted(outdir.rglob("*")):
        if path.is_file() and _is_small(path):
            _copy(path, out / "summary" / path.relative_to(outdir))
    (out / "summary").mkdir(parents=True, exist_ok=True)
    if op.page:
        _copy(outdir / op.page, out / "report.html")
    for path in sorted(outdir.glob("*.png")):
        _copy(path, out / "plots" / path.name)
    result = catalog.load_reference(op.result)(outdir) if op.result else {}
    write_json(out / "result.json", result)
    if "DPAFLOW_STEPS" not in os.environ:
        outdir.rename(out / "folder")
        return
    part = out / ".folder"  # the workspace keeps its own, for whoever comes after
    shutil.copytree(outdir, part)
    part.rename(out / "folder")


def _is_small(path: Path) -> bool:
    if path.suffix in TABLES:
        return True
    return path.suffix in READABLE and path.stat().st_size <= SMALL


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


@contextlib.contextmanager
def _shown(log: Path) -> Iterator[None]:
    """Copy what is appended to a log to standard output, where the cluster looks for it."""
    done = threading.Event()
    begin = log.stat().st_size if log.exists() else 0  # an earlier attempt's was shown by it
    thread = threading.Thread(target=_follow, args=(log, begin, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _follow(log: Path, position: int, done: threading.Event) -> None:
    while True:
        last = done.is_set()
        with contextlib.suppress(FileNotFoundError), log.open("rb") as file:
            if file.seek(0, os.SEEK_END) < position:  # emptied, as for another request
                position = 0
            file.seek(position)
            text = file.read()
            position += len(text)
            sys.stdout.buffer.write(text)
            sys.stdout.flush()
        if last:
            return
        time.sleep(0.2)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(EXIT_CODES["interrupted"])


def report_failure(kind: base.Kind, reason: str, *, said: bool = False) -> int:
    """Tell why, for people and for the cluster, and return the exit code.

    `said`: the log tells it already.
    """
    if not said:
        sys.stderr.write(f"{reason}\n")
    with contextlib.suppress(OSError):  # outside a pod there is no such file
        _place(TERMINATION_LOG).write_text(reason[:MAX_REASON], encoding="utf-8")
    return EXIT_CODES[kind]


if __name__ == "__main__":
    sys.exit(main())
