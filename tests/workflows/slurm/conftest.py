"""A run folder, a Slurm that is none, and what tests do with them."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.workflows.slurm import fake_slurm
from workflows import run_folder
from workflows.backends import local
from workflows.backends.slurm import leftovers
from workflows.graph import Node
from workflows.schema import Execution

RUN_TOY = Path(__file__).parents[1] / "run_toy.py"
ADD = "tests.workflows.toy_ops:ADD"
COUNT = "tests.workflows.toy_ops:COUNT"


class Site:
    """A run folder and the queue its jobs are in."""

    def __init__(self, tmp_path, monkeypatch):
        self.folder = run_folder.RunFolder(tmp_path / "run")
        self.calls = tmp_path / "calls"
        self.home = tmp_path / "slurm"
        self.slurm = {"poll": 0.2, "batch": "shell"}
        self.started = []
        self._monkeypatch = monkeypatch

    def fake(self, **settings):
        """Put a Slurm on this machine."""
        for name, value in fake_slurm.set_up(self.home, **settings).items():
            self._monkeypatch.setenv(name, value)
        self._monkeypatch.setattr(fake_slurm, "HOME", self.home)
        self.slurm["batch"] = "slurm"

    def execution(self, **settings):
        slurm = {**self.slurm, **settings.pop("slurm", {})}
        return {"parallel": 2, "backend": "slurm", "slurm": slurm, **settings}

    def node(self, key, inputs=None, op=ADD, **config):
        return Node(key, op, {"calls": str(self.calls), **config}, inputs or {})

    def run(self, nodes, **settings):
        return local.run(nodes, Execution(**self.execution(**settings)), self.folder)

    def start(self, nodes, **settings):
        """Run in a process of its own, to be killed."""
        path = self.folder.root.parent / "nodes.json"
        path.write_text(json.dumps([node._asdict() for node in nodes]))
        execution = json.dumps(self.execution(**settings))
        process = subprocess.Popen([sys.executable, RUN_TOY, self.folder.root, path, execution])
        self.started.append(process)
        return process

    def kill(self, process):
        """End a run as a lost connection does: nobody can tidy up."""
        process.send_signal(signal.SIGKILL)
        process.wait()

    def jobs(self):
        """Every job there ever was: name and state."""
        return [(job["name"].rpartition(".")[0], job["state"]) for job in self._jobs()]

    def job(self, key):
        """The number of the last job of a step."""
        return [job["id"] for job in self._jobs() if job["name"].startswith(f"{key}.")][-1]

    def _jobs(self):
        self._monkeypatch.setattr(fake_slurm, "HOME", self.home)
        return fake_slurm.jobs()

    def states(self):
        return {s.node.key: s.state for s in run_folder.read_states(self.folder, live=True)}

    def reason(self, key):
        return json.loads((self.folder.steps / key / "status.json").read_text())["reason"]

    def number(self, key):
        return int((self.folder.steps / key / "number").read_text())

    def counted(self, key):
        """The numbers a COUNT step went through, over all its attempts."""
        text = self.calls.read_text() if self.calls.exists() else ""
        return [int(found) for found in re.findall(rf"^{key} (\d+)", text, re.MULTILINE)]

    def wait_for(self, condition, patience=120):
        deadline = time.monotonic() + patience
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture
def site(tmp_path, monkeypatch):
    made = Site(tmp_path, monkeypatch)
    yield made
    for process in made.started:
        process.kill()
        process.wait()
    leftovers.cancel_all(made.folder, Execution(**made.execution()))
