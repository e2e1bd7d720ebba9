"""The pipeline file: mistakes are told with path, value and advice; the graph is right."""

import json
import re

import pytest
import yaml

from dpa_core.config import parse_config
from dpa_core.errors import ConfigError
from dpa_core.yaml_file import read_yaml
from ops import catalog
from tests.workflows.helpers import write_model
from workflows import graph
from workflows.pipeline import plan
from workflows.schema import Pipeline, dump_pipeline, load_pipeline

RUN = {"training": {"numb_steps": 10}}


def document(**changes):
    data = {
        "name": "test",
        "type_map": ["Cu", "Ni"],
        "data": {
            "alloys": {"sources": [{"path": "a.xyz"}], "split": {"valid": 0.1, "test": 0.1}},
            "pool": {"sources": [{"path": "a.xyz"}]},
        },
        "models": {"m_1": {}, "se": {"descriptor": {"type": "se_e2_a", "sel": [20, 20]}}},
        "pretrain": {"data": "alloys", **RUN},
        "targets": [{"name": "new", "data": "pool", "frames": [1, 4], "seeds": [1, 2],
                     "from_scratch": True, "finetune": RUN}],
    }  # fmt: skip
    return {**data, **changes}


@pytest.fixture
def load(tmp_path):
    (tmp_path / "a.xyz").write_text("")

    def load(environment=None, **changes):
        path = tmp_path / "pipeline.yaml"
        path.write_text(yaml.safe_dump(document(**changes)))
        return load_pipeline(path, environment or {})

    return load


ALLOYS = {"sources": [{"path": "a.xyz"}]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"typ_map": ["Cu"]}, "typ_map: unknown key; did you mean 'type_map'?"),
        ({"models": {"m": {"descriptor": {"type": "dpa1", "rcutt": 5}}}},
         "models.m.descriptor.rcutt: unknown key; did you mean 'rcut'?"),
        ({"models": {"m": {"descriptor": {"type": "dpa2"}}}},
         "models.m.descriptor: type must be one of 'dpa1', 'se_e2_a' (got {'type': 'dpa2'"),
        ({"models": {"m": {"descriptor": {"type": "dpa1", "sel": "x"}}}},
         "models.m.descriptor.sel: expected a whole number, or input should be 'auto' (got 'x')"),
        ({"models": {"m": {"descriptor": {"type": "se_e2_a", "sel": [1]}}}},
         "models.m: descriptor.sel has 1 numbers, type_map has 2 elements"),
        ({"data": {"alloys": {"sources": [{"path": "a.xyz", "fromat": "x"}]}}},
         "data.alloys.sources.0.fromat: unknown key; did you mean 'format'?"),
        ({"pretrain": {"frm": {}, "data": "alloys", **RUN}}, "pretrain.frm: unknown key; did you"),
        ({"pretrain": {"data": "aloys", **RUN}},
         "pretrain.data: no such name among the data sets: 'aloys'; did you mean 'alloys'?"),
        ({"pretrain": {"data": "alloys"}}, "pretrain.training: missing; needed to train m_1, se"),
        ({"pretrain": RUN}, "pretrain.data: missing; m_1, se must be trained on something"),
        ({"pretrain": {"data": "alloys", **RUN, "from": {"m_1": "no.safetensors"}}},
         "pretrain.from.m_1: no such file:"),
        ({"targets": [{"name": "new", "data": "pol"}]}, "targets.0.data: no such name among the"),
        ({"targets": [{"name": "new", "data": "pool", "frames": [2]}]},
         "targets.0: target 'new' has frames, so it needs a finetune block"),
        ({"targets": [{"name": "new", "data": "pool", "test": "pool"}]},
         "targets.0.test: 'pool' is also the data to draw from and has no test part"),
        ({"type_map": ["Cu", "Xx"]}, "type_map: no such name among the chemical elements: 'Xx'"),
        ({"type_map": ["Cu", "Ni", "Cu"]}, "twice"),
        ({"data": {"alloys": ALLOYS, "pool": ALLOYS | {"filters": {"elements": ["Au"]}}}},
         "data.pool: element 'Au' is not in type_map"),
        ({"data": {"alloys": ALLOYS, "pool": {"sources": [{"path": "b.xyz"}]}}},
         "data.pool.sources.0.path: no such file or folder: "),
        ({"data": {"alloys": ALLOYS, "pool": ALLOYS, "Pool": ALLOYS}},
         "data: 'pool' and 'Pool' differ only in case"),
        ({"execution": {"parallel": 0}}, "execution.parallel: input should be greater than 0"),
        ({"version": 2}, "version: input should be 1 (got 2)"),
        ({"name": "${NAME}"}, "name: environment variable NAME is not set (got '${NAME}')"),
    ],
)  # fmt: skip
def test_one_line_tells_each_mistake(load, changes, message):
    with pytest.raises(ConfigError) as error:
        load(**changes)
    assert message in str(error.value)
    assert "function-after" not in str(error.value)
    assert "constrained" not in str(error.value)


def test_all_mistakes_at_once(load):
    with pytest.raises(ConfigError, match="3 mistakes") as error:
        load(typ_map=[], execution={"paralel": 2}, version=3)
    assert "did you mean 'parallel'" in str(error.value)


@pytest.mark.parametrize("text", ["a: [", "- a", "", "\x00"])
def test_not_a_pipeline(tmp_path, text):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"p\.yaml: (not readable|expected a mapping)"):
        load_pipeline(tmp_path / "p.yaml")
    with pytest.raises(ConfigError, match="no such file"):
        load_pipeline(tmp_path / "q.yaml")


def test_paths_and_variables(load, tmp_path):
    data = {"alloys": {"sources": [{"path": "${DIR}/a.xyz"}, {"path": "${NO:-.}/*.xyz"}]},
            "pool": ALLOYS}  # fmt: skip
    loaded = load({"DIR": str(tmp_path)}, data=data)
    assert [s.path for s in loaded.data["alloys"].sources] == [
        str(tmp_path / "a.xyz"), str(tmp_path / "*.xyz"),
    ]  # fmt: skip


def test_the_resolved_copy_gives_the_same_steps(load, tmp_path):
    loaded = load()
    copy = tmp_path / "elsewhere" / "pipeline.yaml"
    copy.parent.mkdir()
    copy.write_text(dump_pipeline(loaded))
    assert plan(load_pipeline(copy)) == plan(loaded)


def test_graph(load):
    nodes = {node.key: node for node in plan(load())}
    assert list(nodes)[:5] == [
        "collect-alloys", "collect-pool", "pretrain-m-1", "pretrain-se", "test-pretrained",
    ]  # fmt: skip
    # 2 data, 2 pretrain, 1 test of those, 2 seeds x (draw, test, 2 models x 2 sizes x 3), report
    assert len(nodes) == 2 + 2 + 1 + 2 * (2 + 2 * 2 * 3) + 1
    assert all(re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", key) for key in nodes)
    finetune = nodes["finetune-new-m-1-n00004-s002"]
    assert finetune.inputs == {"train": ["draw-new-s002:train"],
                               "pretrained": "pretrain-m-1:model.safetensors"}  # fmt: skip
    assert finetune.config["training"]["seed"] == 2
    assert (finetune.config["max_frames"], finetune.config["draw_seed"]) == (4, 2)
    assert nodes["pretrain-m-1"].config["training"]["seed"] == 1
    scratch = nodes["scratch-new-m-1-n00004-s002"]
    assert "finetune" not in scratch.config
    assert scratch.config["model"] == {"type_map": ["Cu", "Ni"]}
    test = nodes["test-new-s001"]
    assert len(test.inputs["models"]) == 2 + 2 * 2 * 3
    assert test.inputs["data"] == {"new": ["draw-new-s001:test"]}
    assert graph.needs(nodes["report"]) == set(nodes) - {"report"}
    split = nodes["draw-new-s002"].config["split"]
    assert split == {"train": 4, "test": None, "unit": "frames", "seed": 2}


def test_every_step_is_what_its_op_takes(load):
    for node in plan(load()):
        spec = catalog.find_op(node.op)
        parse_config(catalog.load_reference(spec.config), node.config, node.key)
        inputs = catalog.load_reference(spec.inputs)
        assert set(node.inputs) <= set(inputs._fields)


def test_levels_respect_dependencies(load):
    nodes = plan(load())
    done = set()
    for level in graph.levels(nodes):
        assert all(graph.needs(node) <= done for node in level)
        done |= {node.key for node in level}
    assert done == {node.key for node in nodes}


def test_own_test_set_and_given_model(load, tmp_path):
    write_model(tmp_path / "m.safetensors")
    target = {"name": "new", "data": "pool", "test": "alloys", "frames": [2], "finetune": RUN}
    loaded = load(targets=[target], models={"m_1": {}},
                  pretrain={"from": {"m_1": "m.safetensors"}})  # fmt: skip
    nodes = {node.key: node for node in plan(loaded)}
    assert not any(key.startswith(("draw", "pretrain")) for key in nodes)
    assert nodes["test-new-s001"].inputs["data"] == {"new": ["collect-alloys:test"]}
    refit = nodes["refit-new-m-1-n00002-s001"]
    assert refit.inputs["model"] == str(tmp_path / "m.safetensors")
    before = graph.fingerprints(list(nodes.values()))
    write_model(tmp_path / "m.safetensors", provenance='{"changed": 1}')
    after = graph.fingerprints(list(nodes.values()))
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {refit.key, "finetune-new-m-1-n00002-s001", "test-new-s001", "report"}


def test_a_given_model_that_is_none_is_a_mistake(load, tmp_path):
    (tmp_path / "m.safetensors").write_text("something else")
    with pytest.raises(ConfigError, match=r"pretrain\.from\.m_1: .*not a model file"):
        load(models={"m_1": {}}, pretrain={"from": {"m_1": "m.safetensors"}})


def test_the_largest_draw_is_asked_of_the_pool(load):
    def wanted(**target):
        target = {"name": "new", "data": "pool", "frames": [1, 4], "finetune": RUN, **target}
        nodes = {node.key: node for node in plan(load(targets=[target]))}
        return [nodes[f"collect-{name}"].config.get("min_train") for name in ("alloys", "pool")]

    assert wanted() == [None, 5]  # one more to test on
    assert wanted(test="alloys") == [None, 4]
    assert wanted(frames=[]) == [None, None]


def test_a_key_given_twice_is_named_with_its_lines(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("a: &x {k: 1}\nb: {<<: *x, k: 2}\n")
    assert read_yaml(path)["b"] == {"k": 2}
    path.write_text("name: x\ndata:\n  a: 1\n  a: 2\n")
    with pytest.raises(ConfigError, match=r"(?s)key 'a' .*p\.yaml\", line 3.*line 4"):
        load_pipeline(path)


def test_a_change_reaches_what_depends_on_it_and_nothing_else(load):
    before = graph.fingerprints(plan(load()))
    pretrain = {"data": "alloys", "training": {"numb_steps": 11}}
    nodes = plan(load(pretrain=pretrain))
    after = graph.fingerprints(nodes)
    same = {key for key in before if before[key] == after[key]}
    assert same == {key for key in before if key.startswith(("collect", "draw", "scratch"))}
    again = graph.fingerprints(plan(load(execution={"parallel": 2, "timeout": 5})))
    assert again == before


def test_equal_keys_are_refused():
    node = graph.Node("a", "collect", {})
    with pytest.raises(ConfigError, match="two steps are both called 'a'"):
        graph.check([node, node])
    with pytest.raises(ConfigError, match="needs"):
        graph.check([node._replace(inputs={"x": "b:y"})])


def test_json_schema_describes_every_field():
    schema = Pipeline.model_json_schema(by_alias=True)
    json.dumps(schema)
    assert "from" in schema["$defs"]["Pretrain"]["properties"]
    for block in ("Pipeline", "Pretrain", "Target", "Execution"):
        properties = (schema["$defs"].get(block) or schema)["properties"]
        assert all("description" in item or "$ref" in item for item in properties.values()), block
