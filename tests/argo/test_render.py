"""Rendered workflows: every example against golden files and the models of current Argo."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from dpa_core.errors import ConfigError
from dpa_core.yaml_file import to_yaml
from ops.base import StepRequest
from tests.argo import make_golden
from workflows.backends.argo.advance import following
from workflows.backends.argo.inputs import externalise
from workflows.backends.argo.limits import measure
from workflows.backends.argo.render import fingerprint_of, render, script
from workflows.backends.argo.run import ADVANCE, Run, load_run, plan_run
from workflows.schema import Pipeline, ReportSettings, parse_pipeline

EXAMPLES = {make_golden.name_of(path): path for path in make_golden.examples()}


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("stand-ins")
    return {name: make_golden.rendered(path, folder / name) for name, path in EXAMPLES.items()}


def steps(manifest: dict) -> dict[str, dict]:
    return {t["name"]: t for t in manifest["spec"]["templates"] if "script" in t}


def tasks(manifest: dict) -> dict[str, dict]:
    (dag,) = [t["dag"] for t in manifest["spec"]["templates"] if "dag" in t]
    return {task["name"]: task for task in dag["tasks"]}


@pytest.mark.parametrize("name", EXAMPLES)
def test_golden(name: str, manifests: dict[str, dict]) -> None:
    golden = make_golden.GOLDEN / f"{name}.yaml"
    assert golden.is_file(), "`make golden` writes it"
    assert to_yaml(manifests[name]) == golden.read_text(encoding="utf-8"), "see `make golden`"


def test_another_process_renders_the_same_bytes(tmp_path: Path, manifests: dict) -> None:
    name = "concurrent_learning-emt"
    code = (
        "import sys; from pathlib import Path; from tests.argo import make_golden as g\n"
        "from dpa_core.yaml_file import to_yaml\n"
        "sys.stdout.write(to_yaml(g.rendered(Path(sys.argv[1]), Path(sys.argv[2]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(EXAMPLES[name]), str(tmp_path)],
        cwd=make_golden.ROOT, env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == to_yaml(manifests[name])


def unknown_keys(document: object, model: BaseModel, place: str = "") -> list[str]:
    """Keys of a document that its pydantic model silently dropped."""
    kept = model.model_dump(by_alias=True, exclude_none=True, mode="json")

    def compare(given: object, known: object, at: str) -> list[str]:
        if isinstance(given, dict) and isinstance(known, dict):
            lost = [f"{at}.{key}" for key in given if key not in known]
            return lost + [x for k in given if k in known
                           for x in compare(given[k], known[k], f"{at}.{k}")]  # fmt: skip
        if isinstance(given, list) and isinstance(known, list):
            return [x for k, (a, b) in enumerate(zip(given, known, strict=True))
                    for x in compare(a, b, f"{at}.{k}")]  # fmt: skip
        return []

    return compare(document, kept, place)


@pytest.mark.parametrize("name", EXAMPLES)
def test_models_of_current_argo(name: str, manifests: dict[str, dict]) -> None:
    from hera.workflows.models import Workflow

    assert unknown_keys(manifests[name], Workflow.model_validate(manifests[name])) == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_dflow_reads_it_back(name: str, manifests: dict[str, dict]) -> None:
    from dflow import Workflow

    document = copy.deepcopy(manifests[name])
    for template in steps(document).values():  # dflow cannot read what it writes for a Secret
        env = template["script"]["env"]
        template["script"]["env"] = [entry for entry in env if "value" in entry]
    again = Workflow.from_dict(document).to_dict()
    found = {t["name"]: t for t in again["spec"]["templates"]}
    assert set(found) == {t["name"] for t in document["spec"]["templates"]}
    for key, template in steps(document).items():
        for field in ("source", "image", "command"):
            assert found[key]["script"][field] == template["script"][field]
        artifacts = template.get("outputs", {}).get("artifacts", [])
        assert found[key]["outputs"].get("artifacts", []) == artifacts


@pytest.mark.parametrize("name", EXAMPLES)
def test_references(name: str, manifests: dict[str, dict]) -> None:
    """Every artifact comes from a step before, or from the bucket, and is declared."""
    manifest = manifests[name]
    templates, seen = steps(manifest), set()
    for key, task in tasks(manifest).items():
        declared = {a["name"] for a in templates[key].get("inputs", {}).get("artifacts", [])}
        given = task.get("arguments", {}).get("artifacts", [])
        assert {a["name"] for a in given} == declared
        for artifact in given:
            source = artifact["from"].removeprefix("{{tasks.").removesuffix("}}").split(".")
            assert source[0] in seen
            outputs = {a["name"] for a in templates[source[0]]["outputs"]["artifacts"]}
            assert source[3] in outputs
            assert f"({source[0]}.Succeeded)" in task["depends"]
        seen.add(key)
    keys = [a["s3"]["key"] for t in templates.values()
            for a in t.get("outputs", {}).get("artifacts", [])]  # fmt: skip
    assert len(set(keys)) == len(keys)


def test_script_is_the_request(manifests: dict) -> None:
    manifest = manifests["concurrent_learning-emt"]
    nodes, prints = plan_run(load_run(manifest))
    for node in nodes:
        request = StepRequest.model_validate_json(steps(manifest)[node.key]["script"]["source"])
        assert (request.key, request.op, request.config) == (node.key, node.op, node.config)
        assert request.fingerprint == prints[node.key]
        assert request.retries == 0  # the cluster does them


def test_script_hides_braces_from_argo() -> None:
    document = {"template": "a {{ b }} {{{c}}} {", "nested": {"x": {"y": {}}}}
    text = script(document)
    assert "{{" not in text
    assert json.loads(text) == document


def test_load_run_gives_back_what_was_rendered(manifests: dict) -> None:
    for manifest in manifests.values():
        assert to_yaml(render(load_run(manifest))) == to_yaml(manifest)


def test_braces_of_the_pipeline_are_hidden_from_argo(tmp_path: Path) -> None:
    given = pipeline(tmp_path).model_copy(update={"report": ReportSettings(title="{{a}} {{{=b")})
    manifest = render(Run(given, signatures={"s3://bucket/{{x": "1"}))
    text = json.dumps(manifest["spec"]["arguments"])
    assert "{{" not in text
    assert load_run(manifest).pipeline.report.title == "{{a}} {{{=b"
    assert list(load_run(manifest).signatures) == ["s3://bucket/{{x"]


@pytest.mark.parametrize("name", ["My alloy!", "a" * 57, "-a", "a.b", "Å"])
def test_names_that_a_cluster_does_not_take(name: str, tmp_path: Path) -> None:
    given = pipeline(tmp_path).model_copy(update={"name": name})
    with pytest.raises(ConfigError, match=r"name: .* letters, digits, - and _, .* at most 56"):
        render(Run(given))


def test_labels_of_the_user_do_not_move_a_run(tmp_path: Path) -> None:
    labels = {"dpaflow/run": "another", "dpaflow/sequence": "7", "team": "a"}
    found = render(Run(pipeline(tmp_path, labels=labels)))["metadata"]["labels"]
    assert (found["dpaflow/run"], found["dpaflow/sequence"]) == ("small-one", "1")
    assert found["team"] == "a"


def test_claims_whose_names_are_no_names_of_volumes(tmp_path: Path) -> None:
    volumes = [{"pvc": name, "path": f"/v/{k}"} for k, name in enumerate(["a.b", "a-b", "c" * 70])]
    for template in steps(render(Run(pipeline(tmp_path, volumes=volumes)))).values():
        found = {v["name"] for v in template["volumes"]}
        assert len(found) == len(template["volumes"])
        assert all(re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name) for name in found)


def test_not_ours() -> None:
    with pytest.raises(ConfigError, match="hello-world was not made by dpaflow"):
        load_run({"metadata": {"name": "hello-world"}, "spec": {}})


DECISION = {"go": True, "verdict": "continue", "labelled": 5, "rows": []}


def test_next_iteration_reads_the_earlier_from_the_bucket(manifests: dict) -> None:
    first = manifests["concurrent_learning-emt"]
    second = following(load_run(first), DECISION)
    assert second["metadata"]["name"] == "emt-002"
    assert set(steps(second)) & set(steps(first)) == {ADVANCE}
    assert all(key == ADVANCE or key.startswith("iter-000001-") for key in steps(second))
    outputs = {key: {a["name"]: a["s3"]["key"] for a in t["outputs"]["artifacts"]}
               for key, t in steps(first).items() if key != ADVANCE}  # fmt: skip
    given = tasks(second)["iter-000001-train-m0"]["arguments"]["artifacts"]
    places = {a["name"]: a["s3"]["key"] for a in given}
    assert "iter-000000-collect" in places
    for key, place in places.items():
        assert place == outputs[key]["folder"]
    third = following(load_run(second), DECISION | {"go": False, "verdict": "converged"})
    assert ADVANCE not in steps(third)
    assert {"report", "final-train-m0"} <= set(steps(third))


def test_publishing_has_the_keys_of_the_bucket(manifests: dict) -> None:
    run = load_run(manifests["kubernetes"])
    last = following(run, DECISION | {"go": False, "verdict": "converged"})
    publish = steps(last)["publish"]
    names = {entry["name"] for entry in publish["script"]["env"]}
    assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"} <= names
    assert json.loads(publish["script"]["source"])["config"]["to"] == "s3://alloys/models/al-mg"
    final = json.loads(steps(last)["final-train-m0"]["script"]["source"])["config"]
    assert final["nproc"] == 4  # cluster.resources.final-train


def test_finished_steps_are_left_out(manifests: dict) -> None:
    run = load_run(manifests["demo"])
    nodes, prints = plan_run(run)
    done = {"pretrain-dpa1": prints["pretrain-dpa1"], "collect-alloys": "of other settings"}
    manifest = render(replace(run, sequence=2), done)
    assert set(steps(manifest)) == {node.key for node in nodes} - {"pretrain-dpa1"}
    refit = tasks(manifest)["refit-ternary-dpa1-n00002-s001"]["arguments"]["artifacts"]
    (place,) = [a["s3"]["key"] for a in refit if a["name"] == "pretrain-dpa1"]
    assert place == f"dpaflow/demo/pretrain-dpa1/{prints['pretrain-dpa1']}/folder.tgz"


def test_other_data_behind_a_url_are_other_steps(manifests: dict) -> None:
    run = load_run(manifests["kubernetes"])
    _, before = plan_run(run)
    _, after = plan_run(replace(run, signatures={"s3://alloys/al-mg/test": "changed"}))
    changed = {key for key in before if before[key] != after[key]}
    assert "collect-test" in changed
    assert "iter-000000-train-m0" not in changed


def test_fingerprint_of_a_status(manifests: dict) -> None:
    template = steps(manifests["demo"])["pretrain-dpa1"]
    node = {"outputs": {"artifacts": template["outputs"]["artifacts"]}}
    assert fingerprint_of(node) == template["metadata"]["annotations"]["dpaflow/fingerprint"]
    assert fingerprint_of({}) is None


def pipeline(tmp_path: Path, **cluster: object) -> Pipeline:
    document = yaml.safe_load(SMALL) | {"cluster": cluster}
    return parse_pipeline(yaml.safe_dump(document), "test")


SMALL = """
name: Small_One
data: {known: {sources: [{path: "s3://bucket/known"}], split: {test: 0.2}}}
models: {dpa1: {type_map: [Cu], descriptor: {type: dpa1, rcut: 4.0, sel: 20}}}
pretrain: {data: known, training: {numb_steps: 10}}
"""


def test_resources(tmp_path: Path) -> None:
    resources = {
        "default": {"cpu": 3, "memory": "6Gi"},
        "train": {
            "gpu": 2, "gpu_type": "A100", "memory": "32Gi", "max_memory": "100Gi", "shm": "4Gi",
            "timeout": "2h", "retries": 4, "env": {"NCCL_DEBUG": "INFO"},
            "node_selector": {"zone": "a"}, "env_secrets": ["licence"],
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
            "pvc": {"pvc": "models", "path": "/models", "sub_path": "dpa"},
        },
    }  # fmt: skip
    manifest = render(Run(pipeline(tmp_path, resources=resources, workspace="shared")))
    collect, train = steps(manifest)["collect-known"], steps(manifest)["pretrain-dpa1"]
    assert collect["script"]["resources"]["limits"]["cpu"] == "3"
    limits = train["script"]["resources"]["limits"]
    assert limits == train["script"]["resources"]["requests"]
    assert limits == {"cpu": "3", "memory": "32Gi", "ephemeral-storage": "20Gi",
                      "nvidia.com/gpu": "2"}  # fmt: skip
    assert train["nodeSelector"] == {"zone": "a", "nvidia.com/gpu.product": "A100"}
    assert train["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert train["activeDeadlineSeconds"] == 7200 + 300
    assert train["retryStrategy"]["limit"] == "4"
    assert train["script"]["envFrom"] == [{"secretRef": {"name": "licence"}}]
    assert {"name": "NCCL_DEBUG", "value": "INFO"} in train["script"]["env"]
    volumes = {v["name"]: v for v in train["volumes"]}
    assert volumes["shared-memory"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "4Gi"}
    assert volumes["pvc-models"]["persistentVolumeClaim"] == {"claimName": "models"}
    mounts = {m["mountPath"]: m for m in train["script"]["volumeMounts"]}
    assert mounts["/dev/shm"]["name"] == "shared-memory"
    assert mounts["/models"] == {"name": "pvc-models", "mountPath": "/models", "subPath": "dpa",
                                 "readOnly": True}  # fmt: skip
    assert "readOnly" not in mounts["/dpaflow/workspace"]
    request = json.loads(train["script"]["source"])
    assert request["config"]["nproc"] == 2  # torchrun
    assert request["timeout"] == 7200
    patch = train["podSpecPatch"]
    assert ("{{=asInt(retries) == 0 ? 32768 : asInt(retries) == 1 ? 65536 : 102400}}Mi") in patch
    json.loads(patch)


def test_processes_and_gpus_must_agree(tmp_path: Path) -> None:
    document = yaml.safe_load(SMALL)
    document["pretrain"]["nproc"] = 3
    document["cluster"] = {"resources": {"train": {"gpu": 2}}}
    with pytest.raises(ConfigError, match=r"nproc is 3, but cluster.resources gives it 2 GPUs"):
        render(Run(parse_pipeline(yaml.safe_dump(document), "test")))


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"memory": "8 gigs"}, "no quantity"),
        ({"memory": "8Gi", "max_memory": "4Gi"}, "max_memory 4Gi is less"),
        ({"memory": "8Gi", "shm": "8Gi"}, "taken out of memory"),
        ({"gpu_type": "A100"}, "say how many, gpu: 1"),
        ({"timeout": "soon"}, "no duration"),
        ({"image": "dpaflow"}, "a tag other than latest"),
        ({"image": "registry:5000/dpaflow:latest"}, "a tag other than latest"),
        ({"pvc": {"pvc": "Models", "path": "/m"}}, "no name of a Kubernetes object"),
        ({"gpus": 1}, "gpu"),
    ],
)
def test_wrong_resources(resources: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        pipeline(tmp_path, resources={"train": resources})


def test_paths_that_pods_cannot_read(tmp_path: Path) -> None:
    document = yaml.safe_load(SMALL)
    document["data"]["known"]["sources"] = [{"path": "/home/me/data"}]
    with pytest.raises(ConfigError, match="/home/me/data is on your machine, pods cannot read it"):
        render(Run(parse_pipeline(yaml.safe_dump(document), "test")))
    document["cluster"] = {"volumes": [{"pvc": "homes", "path": "/home"}]}
    manifest = render(Run(parse_pipeline(yaml.safe_dump(document), "test")))
    mounts = {m["mountPath"] for m in steps(manifest)["collect-known"]["script"]["volumeMounts"]}
    assert "/home" in mounts


def test_labels_by_hand_need_a_workspace(tmp_path: Path) -> None:
    loaded = make_golden.load(EXAMPLES["concurrent_learning-cp2k"], tmp_path)
    document = loaded.model_dump(mode="json", by_alias=True, exclude_unset=True)
    label = document["concurrent_learning"]["label"]
    label["labeler"] = {"type": "manual", "inputs": label["labeler"]}
    changed, _ = externalise(Pipeline.model_validate(document))
    with pytest.raises(ConfigError, match=r"name a volume in cluster\.workspace"):
        render(Run(changed))
    document["cluster"] = {"workspace": "shared", "artifacts": "delete"}
    changed, _ = externalise(Pipeline.model_validate(document))
    with pytest.raises(ConfigError, match="later iterations of concurrent_learning read"):
        render(Run(changed))
    document["cluster"] = {"workspace": "shared"}
    changed, _ = externalise(Pipeline.model_validate(document))
    assert "DPAFLOW_LABELS" in json.dumps(render(Run(changed)))


def test_only_steps_that_read_the_bucket_get_its_keys(manifests: dict) -> None:
    with_keys = {
        key for key, template in steps(manifests["kubernetes"]).items()
        if any(e["name"] == "AWS_SECRET_ACCESS_KEY" for e in template["script"]["env"])
    }  # fmt: skip
    assert with_keys == {"collect-known", "collect-test"}
    for template in steps(manifests["kubernetes"]).values():
        for entry in template["script"]["env"]:
            if entry["name"].startswith("AWS_") and "KEY" in entry["name"]:
                assert entry["valueFrom"]["secretKeyRef"]["name"] == "dpaflow-s3"


def many(tmp_path: Path, **changes: object) -> dict:
    document = yaml.safe_load(SMALL)
    document["targets"] = [
        {"name": "t", "data": "known", "frames": list(range(1, 41)), "seeds": list(range(10)),
         "finetune": {"training": {"numb_steps": 1}}}
    ]  # fmt: skip
    document["cluster"] = changes
    return render(Run(parse_pipeline(yaml.safe_dump(document), "test")))


def test_too_many_pods_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"would have 8.. pods, cluster.max_pods allows 500; make"
    ):
        many(tmp_path)


def test_too_large_objects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"an object of \d.\d\d MB .* Kubernetes takes 1 MB"):
        many(tmp_path, max_pods=2000)


def test_too_large_steps_are_refused(tmp_path: Path) -> None:
    document = yaml.safe_load(SMALL)
    sources = [{"path": f"s3://bucket/known/{'x' * 100}-{k}"} for k in range(1200)]
    document["data"]["known"]["sources"] = sources
    with pytest.raises(ConfigError, match=r"step collect-known .* would be 1.. KiB, a pod takes"):
        render(Run(parse_pipeline(yaml.safe_dump(document), "test")))


def test_argo_writes_some_characters_longer(manifests: dict) -> None:
    manifest = copy.deepcopy(manifests["demo"])
    template = steps(manifest)["report"]
    template["script"]["source"] = "<" * 25_000  # Argo, like all of Kubernetes, writes \\u003c
    assert measure(manifest).template > 25_000 * 6 + len(template["inputs"]["artifacts"]) * 100


def test_size_counts_every_byte(manifests: dict) -> None:
    for manifest in manifests.values():
        size = measure(manifest)
        text = json.dumps(manifest, separators=(",", ":"), ensure_ascii=False)
        assert size.spec == len(text.encode())
        assert size.depth == 2
