"""A pipeline whose data and models are on S3: schema, fingerprints, labelers, a whole run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from dpa_core.errors import ConfigError
from ops.explorers.lammps import check_lammps
from ops.storage import fetch, listing
from tests.ops.helpers import TYPES, make_frame, write
from tests.storage.helpers import put, random_bytes
from tests.storage.proxy import Proxy
from workflows import graph
from workflows.concurrent_learning import Progress
from workflows.pipeline import plan
from workflows.publish import pipeline_hash
from workflows.schema import Pipeline, dump_pipeline, load_pipeline, parse_pipeline

RUN = {"training": {"numb_steps": 4, "save_freq": 4, "disp_freq": 2}}
SMALL = {
    "descriptor": {"type": "se_e2_a", "rcut": 3.5, "rcut_smth": 0.5, "sel": [20, 20, 20],
                   "neuron": [2, 4], "axis_neuron": 2},
    "fitting_net": {"neuron": [4, 4]},
}  # fmt: skip


def document(bucket: str, **changes: Any) -> dict[str, Any]:
    source = {"path": f"s3://{bucket}/data/alloys"}
    return {
        "name": "from-s3",
        "type_map": list(TYPES),
        "data": {
            "alloys": {"sources": [source], "split": {"train": 10, "test": 2, "unit": "frames"}}
        },
        "models": {"se": SMALL},
        "pretrain": {"data": "alloys", **RUN},
        "publish": f"s3://{bucket}/models/se",
        **changes,
    }


def load(folder: Path, data: dict[str, Any]) -> Pipeline:
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(data))
    return load_pipeline(path, {})


def test_validate_asks_nobody(proxy: Proxy, tmp_path: Path) -> None:
    pipeline = load(tmp_path, document("nowhere", pretrain={"from": {"se": "s3://nowhere/m"}},
                                       targets=[{"name": "t", "data": "alloys", "frames": [2],
                                                 "finetune": RUN}]))  # fmt: skip
    assert pipeline.data["alloys"].sources[0].path == "s3://nowhere/data/alloys"
    assert pipeline.pretrain.given == {"se": "s3://nowhere/m"}
    nodes = {node.key: node for node in plan(pipeline)}
    assert graph.needs(nodes["finetune-t-se-n00002-s001"]) == {"draw-t-s001"}
    assert nodes["finetune-t-se-n00002-s001"].files == ("s3://nowhere/m",)
    again = parse_pipeline(dump_pipeline(pipeline), "again")
    assert graph.fingerprints(plan(again), {}) == graph.fingerprints(plan(pipeline), {})
    assert proxy.asked == []


def test_paths_on_volumes_need_not_exist_here(tmp_path: Path) -> None:
    data = document("b", data={"alloys": {"sources": [{"path": "/models/not-here/alloys"}]}})
    with pytest.raises(ConfigError, match="no such file or folder: /models/not-here/alloys"):
        load(tmp_path, data)
    data["cluster"] = {"volumes": [{"pvc": "models", "path": "/models"}]}
    load(tmp_path, data)
    data["cluster"] = {"resources": {"collect": {"pvc": {"pvc": "models", "path": "/models"}}}}
    load(tmp_path, data)


def test_fingerprints_follow_the_data(proxy: Proxy, s3: Any, bucket: str, tmp_path: Path) -> None:
    put(s3, bucket, "data/alloys", {"type.raw": b"0"})
    nodes = plan(load(tmp_path, document(bucket)))
    before = graph.fingerprints(nodes)
    assert graph.fingerprints(nodes) == before
    put(s3, bucket, "data/alloys", {"type.raw": b"1"})
    assert set(before.items()).isdisjoint(graph.fingerprints(nodes).items())
    proxy.reset()
    url = f"s3://{bucket}/data/alloys"
    known = graph.fingerprints(nodes, {url: "one"})
    assert known == graph.fingerprints(nodes, {url: "one"})
    assert known["collect-alloys"] != graph.fingerprints(nodes, {url: "two"})["collect-alloys"]
    assert proxy.asked == []


@pytest.mark.parametrize("to", ["/here", "s3://bucket", "s3://bucket/a*", "s3://bucket/a//b"])
def test_publish_wants_a_prefix(to: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(ConfigError, match=r"publish\.to"):
        load(tmp_path, document("b", publish=to))


def test_what_is_published(tmp_path: Path) -> None:
    pipeline = load(tmp_path, document("b"))
    publish = plan(pipeline)[-1]
    (model,) = publish.config["models"]
    assert (publish.key, publish.config["to"]) == ("publish", "s3://b/models/se")
    assert model == {"name": "se", "step": "pretrain-se", "data": ["collect-alloys:train"],
                     "tests": {"test-pretrained": "pretrain-se"}, "started_from": None}  # fmt: skip
    assert graph.needs(publish) == {"pretrain-se", "report", "test-pretrained", "collect-alloys"}
    target = {"name": "t", "data": "alloys", "frames": [2, 4], "seeds": [3, 5], "finetune": RUN}
    publish = plan(load(tmp_path, document("b", targets=[target])))[-1]
    (model,) = publish.config["models"]
    assert model["step"] == "finetune-t-se-n00004-s003"
    assert model["started_from"] == "pretrain-se"
    changed = document("b", publish={"to": "s3://b/m", "models": {"x": "report"}})
    with pytest.raises(ConfigError, match=r"publish\.models\.x: no step 'report' makes a model"):
        plan(load(tmp_path, changed))


def test_loop_publishes_when_it_has_ended(root: Path) -> None:
    text = (root / "examples/concurrent_learning/emt.yaml").read_text()
    pipeline = parse_pipeline(text + "\npublish: s3://b/models/loop\n", "emt")
    assert "publish" not in {node.key for node in plan(pipeline)}
    publish = plan(pipeline, Progress(2, finished=True, labelled=9))[-1]
    assert publish.key == "publish"
    names = [model["name"] for model in publish.config["models"]]
    assert names[0] == "m0"
    assert [m["step"] for m in publish.config["models"]] == [f"final-train-{n}" for n in names]
    assert "iter-000001-collect:train" in publish.config["models"][0]["data"]


def test_pipeline_hash(tmp_path: Path) -> None:
    found = pipeline_hash(load(tmp_path, document("b")))
    same = document("b", publish="s3://b/other", execution={"parallel": 2}, report={"title": "x"})
    assert pipeline_hash(load(tmp_path, same)) == found
    assert pipeline_hash(load(tmp_path, document("b", seed=7))) != found


def test_pseudopotentials_and_models_of_other_programs(
    proxy: Proxy, s3: Any, bucket: str, tmp_path: Path
) -> None:
    """What is written does not depend on where the cache is; what runs finds the files."""
    import numpy as np

    from ops.explorers.lammps import LammpsExplorer
    from ops.labelers import check_labeler
    from ops.labelers.base import Structure
    from ops.labelers.qe import QeLabeler

    template = "&control\n calculation='scf', tprnfor=.true., tstress=.true.\n/\n&system\n" \
               " ecutwfc=30\n/\n&electrons\n/\n"  # fmt: skip
    pseudos = {"Al": "Al.upf", "Cu": "Cu.upf"}
    labeler = QeLabeler(type="qe", template=template, kspacing=0.5, command="pw.x",
                        pseudo_dir=f"s3://{bucket}/pseudo", pseudos=pseudos)  # fmt: skip
    assert [line for line in check_labeler(labeler) if "warning" not in line] == []
    assert proxy.asked == []
    put(s3, bucket, "pseudo", {"Al.upf": b"Al", "Cu.upf": b"Cu"})
    structure = Structure(("Al",), np.zeros((1, 3)), np.eye(3) * 4)
    labeler.write(structure, tmp_path)
    labeler.finish(structure.elements, tmp_path)
    assert "pseudo_dir = './'" in " ".join((tmp_path / "input.in").read_text().split())
    assert (tmp_path / "Al.upf").read_bytes() == b"Al"
    assert not (tmp_path / "Cu.upf").exists()
    local = labeler.model_copy(update={"pseudo_dir": str(fetch(f"s3://{bucket}/pseudo"))})
    assert labeler.identity(["Al"]) == local.identity(["Al"])

    put(s3, bucket, "frozen", {"m0.pb": random_bytes(9, 1), "m1.pb": random_bytes(9, 2)})
    files = [f"s3://{bucket}/frozen/m{k}.pb" for k in range(2)]
    check_lammps(LammpsExplorer(type="lammps", ensemble="nvt", temperatures=[300], steps=10,
                                model_files=files, write_only=True))  # fmt: skip


@pytest.mark.slow
def test_whole_run(
    proxy: Proxy, s3: Any, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pretrain from s3:// data and publish; another pipeline finetunes what was published."""
    from ops.storage import upload
    from workflows.cli import app

    def dpaflow(*arguments: str) -> str:
        done = CliRunner().invoke(app, list(arguments))
        assert done.exit_code == 0, done.output + repr(done.exception)
        return done.output

    frames = [make_frame([k % 3, (k + 1) % 3, 2, 1], seed=k) for k in range(12)]
    upload(write(frames, tmp_path / "alloys"), f"s3://{bucket}/data/alloys")
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(yaml.safe_dump(document(bucket)))
    url = f"s3://{bucket}/models/se"
    assert "publish" in dpaflow("validate", str(first))
    dpaflow("run", str(first), "--out", str(tmp_path / "run1"))
    card = json.loads((fetch(url) / "model.json").read_text())
    assert card["training_data"][0]["frames"] == 10
    assert set(card["models"][0]["tests"]) == {"alloys"}
    assert card["date"]
    target = {"name": "t", "data": "alloys", "frames": [2], "finetune": RUN}
    data = document(bucket, pretrain={"from": {"se": url}}, targets=[target],
                    publish=f"s3://{bucket}/models/tuned")  # fmt: skip
    second.write_text(yaml.safe_dump(data))
    dpaflow("validate", str(second))
    dpaflow("run", str(second), "--out", str(tmp_path / "run2"))
    tuned = json.loads((fetch(f"s3://{bucket}/models/tuned") / "model.json").read_text())
    assert tuned["models"][0]["started_from"] == url
    assert set(tuned["models"][0]["tests"]) == {"t"}
    objects = len(listing(f"s3://{bucket}"))
    again = dpaflow("run", str(second), "--out", str(tmp_path / "run2"))
    assert "succeeded" in again or "report" in again
    assert len(listing(f"s3://{bucket}")) == objects
    assert "type_map" in dpaflow("model", "info", url)
    dpaflow("model", "test", url, f"s3://{bucket}/data/alloys", "--out", str(tmp_path / "test"))
