"""A Slurm of one machine: sbatch, squeue, scancel, sacct and scontrol, by the name it is called.

Jobs are processes; what is printed has the form of the real commands, as far as dpdispatcher and
dpaflow ask. State is in the folder $FAKE_SLURM: `jobs/ID.json`, and files that change behaviour,
see `set_up`. A minute of a time limit lasts $FAKE_SLURM_MINUTE seconds.
"""

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

HOME = Path(os.environ.get("FAKE_SLURM", "."))
SHORT = {"PENDING": "PD", "RUNNING": "R", "COMPLETING": "CG"}
KILL_WAIT = 5.0
COMMANDS = ("sbatch", "squeue", "scancel", "sacct", "scontrol")


def set_up(folder, *, slots=99, minute=60.0, accounting=True):
    """Make the commands in folder/bin; return the environment that has them."""
    (folder / "bin").mkdir(parents=True)
    (folder / "jobs").mkdir()
    (folder / "slots").write_text(str(slots))
    for name in COMMANDS:
        if name in ("sacct", "scontrol") and not accounting:
            continue
        path = folder / "bin" / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P "{__file__}" {name} "$@"\n')
        path.chmod(0o755)
    return {
        "FAKE_SLURM": str(folder),
        "FAKE_SLURM_MINUTE": str(minute),
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
    }


def say(text):
    sys.stdout.write(f"{text}\n")


def fail(text):
    sys.stderr.write(text + "\n")
    sys.exit(1)


@contextlib.contextmanager
def the_lock():
    with (HOME / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def load(number):
    return json.loads((HOME / "jobs" / f"{number}.json").read_text())


def save(job):
    path = HOME / "jobs" / f"{job['id']}.json"
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(job))
    part.replace(path)


def jobs():
    paths = sorted((HOME / "jobs").glob("*.json"), key=lambda path: int(path.stem))
    return [json.loads(path.read_text()) for path in paths]


def sbatch(arguments):
    assert arguments[0] == "--parsable"
    if (HOME / "refuse").exists():
        fail((HOME / "refuse").read_text())
    script = Path(arguments[1]).read_text()
    given = dict(re.findall(r"^#SBATCH --([a-z-]+)[= ](\S+)", script, re.MULTILINE))
    with the_lock():
        number = 1 + len(list((HOME / "jobs").glob("*.json")))
        output = given["output"].replace("%j", str(number))
        save({"id": str(number), "name": given["job-name"], "state": "PENDING", "pid": 0,
              "reason": "Resources", "output": output, "script": arguments[1],
              "folder": str(Path.cwd()), "limit": given.get("time")})  # fmt: skip
    with (HOME / "stepd.log").open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-P", __file__, "stepd", str(number)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    say(number)


def seconds(limit):
    if limit is None:
        return None
    days, hours, minutes, rest = map(int, re.split("[-:]", limit))
    whole = (days * 24 + hours) * 60 + minutes + rest / 60
    return whole * float(os.environ["FAKE_SLURM_MINUTE"])


def stepd(arguments):
    """Run one job, as the daemon of a node does."""
    job = load(arguments[0])
    cancelled = []
    signal.signal(signal.SIGTERM, lambda *_: cancelled.append(True))
    save({**job, "stepd": os.getpid()})
    while not start(job):
        if cancelled:
            return save({**load(job["id"]), "state": "CANCELLED by 0"})
        time.sleep(0.1)
    with Path(job["folder"], job["output"]).open("ab") as output:
        child = subprocess.Popen(
            ["bash", job["script"]], cwd=job["folder"], stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "SLURM_JOB_ID": job["id"]},
        )  # fmt: skip
    save({**load(job["id"]), "pid": child.pid})
    limit = seconds(job["limit"])
    begin = time.monotonic()
    while child.poll() is None:
        late = limit is not None and time.monotonic() - begin > limit
        if late or cancelled:
            with Path(job["folder"], job["output"]).open("a") as output:
                cause = " DUE TO TIME LIMIT" if late else ""
                output.write(f"slurmstepd: error: *** JOB {job['id']} ON n1 CANCELLED{cause} ***\n")
            save({**load(job["id"]), "state": "COMPLETING"})
            end_tree(child)
            return save({**load(job["id"]), "state": "TIMEOUT" if late else "CANCELLED by 0"})
        time.sleep(0.05)
    state = "COMPLETED" if child.returncode == 0 else "FAILED"
    return save({**load(job["id"]), "state": state})


def start(job):
    with the_lock():
        slots = int((HOME / "slots").read_text())
        if sum(other["state"] in ("RUNNING", "COMPLETING") for other in jobs()) >= slots:
            return False
        save({**load(job["id"]), "state": "RUNNING", "reason": "None"})
        return True


def tree(pid):
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        leader = psutil.Process(pid)
        return [*leader.children(recursive=True), leader]
    return []


def end_tree(child):
    """SIGTERM, then SIGKILL, to every process of a job."""
    import psutil

    processes = tree(child.pid)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, left = psutil.wait_procs(processes, KILL_WAIT)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    child.wait()


def lose(number, state):
    """What happens when a node dies: every process of the job is gone at once."""
    job = load(number)
    for process in [*tree(job["stepd"]), *tree(job["pid"])]:
        with contextlib.suppress(Exception):
            process.kill()
    save({**job, "state": state})


def option(arguments, *names):
    for k, argument in enumerate(arguments):
        for name in names:
            if argument == name:
                return arguments[k + 1]
            if argument.startswith(f"{name}="):
                return argument.partition("=")[2]
    return None


def squeue(arguments):
    if (HOME / "down").exists():
        fail((HOME / "down").read_text())
    number, form = option(arguments, "-j", "--jobs"), option(arguments, "-o", "--format")
    everything = option(arguments, "--states") == "all"
    live = [job for job in jobs() if everything or job["state"] in SHORT]
    if number is not None:
        live = [job for job in live if job["id"] == number]
        if not live and (HOME / "forgets").exists():
            fail("slurm_load_jobs error: Invalid job id specified")
    if form == "%.18i %.2t":
        say(f"{'JOBID':>18} ST")
        for job in live:
            say(f"{job['id']:>18} {SHORT[job['state']]:>2}")
    else:
        assert form == "%i|%T|%r|%j", form
        for job in live:
            say(f"{job['id']}|{job['state']}|{job['reason']}|{job['name']}")


def scancel(arguments):
    for number in arguments[1:]:
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            job = load(number)
            if job["state"] in SHORT:
                os.kill(job["stepd"], signal.SIGTERM)


def sacct(arguments):
    with contextlib.suppress(FileNotFoundError):
        say(load(option(arguments, "--jobs"))["state"])


def scontrol(arguments):
    number = arguments[-1]
    if (HOME / "forgets").exists() or not (HOME / "jobs" / f"{number}.json").exists():
        fail("slurm_load_jobs error: Invalid job id specified")
    job = load(number)
    say(f"JobId={number} JobName={job['name']} UserId=me(0) JobState={job['state'].split()[0]} "
        f"Reason={job['reason']} Dependency=(null)")  # fmt: skip


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2:])
