"""What a loop survives; the long version is benchmarks/faults/fault_test.py."""

from workflows.graph import Node, remaining


def test_dflow_is_given_only_what_is_left_to_do(tmp_path):
    nodes = [
        Node("a", "train", {}, {"train": ["/data"]}),
        Node("b", "test", {}, {"models": {"m": "a:model"}, "data": {"x": ["/data"]}}),
        Node("c", "report", {}, {"tests": ["b:", "a:"]}),
    ]
    left = remaining(nodes, {"b", "c"}, tmp_path)
    assert [node.key for node in left] == ["b", "c"]
    assert left[0].inputs == {"models": {"m": f"{tmp_path}/a/model"}, "data": {"x": ["/data"]}}
    assert left[1].inputs == {"tests": ["b:", f"{tmp_path}/a"]}
    assert remaining(nodes, {"a", "b", "c"}, tmp_path) == nodes
