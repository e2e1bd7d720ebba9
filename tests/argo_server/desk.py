"""A user at a terminal in front of the small Argo: fixture `desk`."""

import os
import sys
import tarfile
import time
from io import BytesIO

import pytest
import yaml
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write

from tests.argo_server.fixtures import ACCESS, SECRET
from workflows import cli
from workflows.backends.argo import watch
from workflows.graph import Node

SMALL = {
    "descriptor": {
        "type": "dpa1", "rcut": 3.0, "rcut_smth": 0.5, "sel": 20, "neuron": [2, 4],
        "axis_neuron": 2, "attn_layer": 0,
    },
    "fitting_net": {"neuron": [4]},
}  # fmt: skip
TRAINING = {"training_data": {"batch_size": 2}, "numb_steps": 3}
TOYS = "tests.workflows.toy_ops"


class Desk:
    """A user at a terminal, and the cluster that their commands talk to."""

    def __init__(self, server, s3, folder, capsys, monkeypatch):
        self.server, self.s3, self.folder = server, s3, folder
        self.capsys, self.monkeypatch = capsys, monkeypatch

    def write(self, **blocks):
        """Write a pipeline with data, and return its path."""
        document = {
            "type_map": ["Cu"],
            "models": {"small": SMALL},
            "execution": {"retries": 2},
            "cluster": {"storage": {"endpoint": self.s3}},
            **blocks,
        }
        path = self.folder / f"{document['name']}.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        return str(path)

    def data(self, name="cu.extxyz", count=8):
        """Write labelled frames."""
        frames = []
        for seed in range(count):
            atoms = bulk("Cu", cubic=True)
            atoms.rattle(0.1, seed=seed)
            atoms.calc = EMT()
            atoms.get_forces()
            atoms.get_stress()
            frames.append(atoms)
        write(self.folder / name, frames)
        return name

    def pretraining(self, **blocks):
        """A pipeline of three steps."""
        known = {"sources": [{"path": self.data()}]}
        return self.write(**{
            "name": "tiny", "data": {"known": known},
            "pretrain": {"data": "known", "training": TRAINING}, **blocks,
        })  # fmt: skip

    def loop(self, **blocks):
        """A pipeline of two iterations from nothing but a crystal."""
        crystal = {"type": "generate", "lattice": "fcc", "element": "Cu", "cell": "cubic",
                   "rattle": 0.1, "count": 3}  # fmt: skip
        loop = {
            "start": "scratch", "init": {"structures": ["start"]}, "max_iterations": 2,
            "committee": {"size": 2, "kind": "heads"},
            "train": {"strategy": "last", "training": TRAINING},
            "structures": {"start": crystal}, "stages": [{"structures": ["start"]}],
            "explore": {"type": "ase", "steps": 4, "trj_freq": 2, "temperatures": [300]},
            "select": {"lo": 1e-4, "hi": 1000, "max_candidates": 2},
            "label": {"labeler": {"type": "ase", "calculator": "emt"}, "group_size": 4},
        }  # fmt: skip
        return self.write(**{"name": "loop", "concurrent_learning": loop, **blocks})

    def toys(self, *nodes, cluster=None, **blocks):
        """A pipeline of cheap steps; pods do not know the difference."""
        self.monkeypatch.setattr("workflows.revisions.plan", lambda *_: list(nodes))
        block = {"storage": {"endpoint": self.s3}, **(cluster or {})}
        return self.pretraining(name="toy", cluster=block, **blocks)

    def __call__(self, *arguments):
        """Give a command; return its exit code and what it said."""
        self.monkeypatch.setattr(sys, "argv", ["dpaflow", *map(str, arguments)])
        self.capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        said = self.capsys.readouterr()
        return code, said.out + said.err

    def ok(self, *arguments):
        code, text = self(*arguments)
        assert code == 0, text
        return text

    def workflow(self, name):
        return self.server.engine.workflows[name].snapshot()

    def nodes(self, name):
        return {n["displayName"]: n for n in self.workflow(name)["status"]["nodes"].values()}


@pytest.fixture
def desk(serve, s3_server, tmp_path, monkeypatch, capsys):
    server = serve(s3=s3_server)
    for name in [n for n in os.environ if n.startswith(("ARGO_", "AWS_", "DPAFLOW_", "KUBE"))]:
        monkeypatch.delenv(name)
    environment = {
        "ARGO_SERVER": server.url, "ARGO_TOKEN": server.token,
        "AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1",
        "DPAFLOW_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path / "home"),
    }  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(watch, "PAUSE", 0.1)
    monkeypatch.chdir(tmp_path)
    return Desk(server, s3_server, tmp_path, capsys, monkeypatch)


def toy(key, *above, **config):
    """A step that adds the numbers of other steps."""
    parts = [f"{name}:number" for name in above]
    return Node(key, f"{TOYS}:ADD", {"value": 1, **config}, {"parts": parts} if parts else {})


def number(desk, name, key):
    """The number that a step came to."""
    artifacts = {a["name"]: a for a in desk.nodes(name)[key]["outputs"]["artifacts"]}
    content = desk.server.cluster.store.get(artifacts["folder"]["s3"]["key"])
    with tarfile.open(fileobj=BytesIO(content)) as archive:
        return int(archive.extractfile("folder/number").read())


def until(condition, patience=60):
    limit = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.05)
