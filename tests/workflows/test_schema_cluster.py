"""What people write wrongly into `cluster`, and what they are told before a pod waits for ever."""

import re
from pathlib import Path

import pytest
import yaml

from dpa_core.config import parse_config
from dpa_core.errors import ConfigError
from ops.storage import signature
from workflows import cli
from workflows.backends.argo.context import Context
from workflows.schema import load_pipeline
from workflows.schema_cluster import Cluster, Resources


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"memory": 16}, "train.memory: '16' is 16 bytes; write the unit: 16Gi or 512Mi (got 16)"),
        ({"memory": "500m"}, "'500m' is 0.5 bytes; write the unit"),
        ({"memory": "16 GB"}, "'16 GB' is no quantity of bytes; write 16Gi or 512Mi"),
        ({"disk": 0}, "train.disk: '0' is 0 bytes"),
        ({"cpu": "4Gi"}, "'4Gi' is no quantity of CPU cores; write 4, or 500m"),
        ({"cpu": 0}, "'0' is no quantity of CPU cores"),
        ({"timeout": 0}, "0 is no duration; write 90 (seconds), 30min, 2h or 7d"),
        ({"gpu": "a100"}, "train.gpu: expected a whole number (got 'a100')"),
        ({"gpu": 1, "gpu_type": "NVIDIA A100"}, "'NVIDIA A100' cannot be the value of a label"),
        ({"node_selector": "pool=cpu"}, "expected a mapping, key: value (got 'pool=cpu')"),
        ({"tolerations": [{"kye": "x"}]}, "'kye' is no key of a toleration; there are key"),
        ({"affinity": {"nodeAfinity": {}}}, "'nodeAfinity' is no key of an affinity"),
        ({"env": {"A B": "1"}}, "'A B' cannot be an environment variable"),
        ({"env": {"THREADS": 4}}, "train.env.THREADS: expected text; numbers"),
        ({"image": "my image:1"}, "'my image:1' is no image"),
        ({"pvc": {"pvc": "x", "path": "data"}}, "path: not of the form that is needed; write it "
                                                "like /data (got 'data')"),
        (4, "train: expected a mapping, key: value (got 4)"),
    ],
)  # fmt: skip
def test_wrong_resources(entry, told):
    with pytest.raises(ConfigError) as error:
        parse_config(Cluster, {"resources": {"train": entry}}, "p.yaml")
    assert str(error.value).startswith("p.yaml: 1 mistake\n")
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("block", "told"),
    [
        ({"storage": {"endpoint": "s3.here"}}, "storage.endpoint: not of the form that is needed; "
                                               "write it like https://s3.example.org"),
        ({"labels": {"team": "Mat Sci"}}, "labels.team: 'Mat Sci' cannot be the value of a label"),
        ({"volumes": [{"pvc": "a", "path": "/d"}, {"pvc": "b", "path": "/d/"}]},
         "two volumes have the path /d"),
        ({"volumes": [{"pvc": "a", "path": "/dpaflow"}]}, "cannot have the path /dpaflow"),
        ({"volumes": {"pvc": "a", "path": "/d"}}, "volumes: expected a list"),
    ],
)  # fmt: skip
def test_wrong_blocks(block, told):
    with pytest.raises(ConfigError) as error:
        parse_config(Cluster, block, "p.yaml")
    assert told in str(error.value)


def test_secrets_in_the_environment_are_not_shown():
    env = {"env": {"API_TOKEN": "planted", "HOST": "a"}}
    with pytest.raises(ConfigError) as error:
        parse_config(Cluster, {"resources": {"train": env}}, "p.yaml")
    assert "API_TOKEN looks like a secret" in str(error.value)
    assert "env_secrets" in str(error.value)
    assert "planted" not in str(error.value)


def test_what_is_right():
    entry = {
        "cpu": "500m", "memory": "1.5Gi", "timeout": "2 h", "env": {"TOKENIZERS_PARALLELISM": "0"},
        "image": "registry.example.org:5000/group/dpaflow:0.1.0-cuda", "disk": "100G",
        "tolerations": {"key": "gpu", "operator": "Exists"}, "affinity": {"nodeAffinity": {}},
        "pvc": {"pvc": "x", "path": "/tmpdata"},
    }  # fmt: skip
    found = parse_config(Cluster, {"resources": {"train": entry}}, "p.yaml").resources["train"]
    assert (found.timeout, len(found.tolerations)) == (7200, 1)


def test_an_address_without_scheme():
    with pytest.raises(ConfigError, match=r"server: .* like https://argo\.example\.org:2746"):
        parse_config(Context, {"server": "argo.example.org:2746"}, "context.yaml")


def test_resources_of_no_step(tmp_path, capsys, monkeypatch):
    path = tmp_path / "p.yaml"
    path.write_text("""
name: small
data: {known: {sources: [{path: "s3://bucket/known"}]}}
models: {dpa1: {type_map: [Cu], descriptor: {type: dpa1, rcut: 4.0, sel: 20}}}
pretrain: {data: known, training: {numb_steps: 10}}
cluster: {resources: {trian: {gpu: 1}, train: {gpu: 1}}}
""")
    for arguments in (["validate", path], ["render", path, "-o", tmp_path / "w.yaml"]):
        monkeypatch.setattr("sys.argv", ["dpaflow", *map(str, arguments)])
        cli.app(standalone_mode=False)
        told = capsys.readouterr().err
        assert told.count("warning") == 1
        assert "cluster.resources.trian belongs to no step: did you mean train" in told


def test_what_the_page_shows():
    text = (Path(__file__).parents[2] / "docs/cluster.md").read_text(encoding="utf-8")
    context, block = (
        yaml.safe_load(b) for b in re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S)
    )
    assert parse_config(Context, context, "page").namespace == "dpaflow"
    assert parse_config(Cluster, block["cluster"], "page").resources["final-train"].gpu == 4
    (table,) = re.findall(r"^\| key \| means \|\n(.*?)\n\n", text, re.M | re.S)
    keys = re.findall(r"`([a-z_]+)`", " ".join(row.split("|")[1] for row in table.splitlines()))
    assert set(keys) == set(Resources.model_fields)


@pytest.mark.parametrize("path", ["https://there/data", "s3:/bucket/data", "gs://bucket/data"])
def test_addresses_that_are_not_read(path, tmp_path):
    file = tmp_path / "p.yaml"
    document = {
        "name": "small", "data": {"known": {"sources": [{"path": path}]}},
        "models": {"dpa1": {"type_map": ["Cu"]}},
        "pretrain": {"data": "known", "training": {"numb_steps": 10}},
    }  # fmt: skip
    file.write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigError, match="of addresses only s3://bucket/key can be read"):
        load_pipeline(file)


def test_half_of_the_keys(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "planted")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    with pytest.raises(ConfigError, match="only one is set; set both") as error:
        signature("s3://bucket/known")
    assert "planted" not in str(error.value)
