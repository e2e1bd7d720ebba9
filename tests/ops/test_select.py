"""Selection of frames: counts, levels, filters, what is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from dpa_core.config import parse_config
from dpa_core.data import open_dataset, write_mixed
from dpa_core.errors import ConfigError, DataError
from dpa_core.frames import Frame
from ops.select import SelectConfig, SelectInputs, SelectSettings, run_select
from tests.ops.explored import TYPES, bulk, deviations, make_explored

CHEAP = {"min_new": 0, "diversity": "top"}
"""No descriptors, so no model."""


def config(stage: dict[str, object], **more: object) -> SelectConfig:
    return SelectConfig.model_validate({"stages": [stage], **more})


def read(folder: Path) -> dict[str, object]:
    return json.loads((folder / "select.json").read_text())


def decision(path: Path, stage: int, rows: list[dict[str, object]]) -> Path:
    path.write_text(json.dumps({"next_stage": stage, "rows": rows}))
    return path


def test_counts_of_fixed_levels(tmp_path: Path) -> None:
    values = [0.01, 0.05, 0.10, 0.149, 0.15, 0.3, np.nan]
    frames = [bulk(seed=k) for k in range(7)]
    folder = make_explored(tmp_path / "x", {"000000": (frames, deviations(values))})
    settings = config({"lo": 0.05, "hi": 0.15, "max_candidates": 2, **CHEAP}, iteration=3)
    found = run_select(SelectInputs([folder]), settings, tmp_path / "out")
    # lo belongs to the candidates, hi to the failed, NaN has failed
    assert (found["frames"], found["accurate"], found["candidate"], found["failed"]) == (7, 1, 3, 3)
    assert found["fractions"] == {
        "accurate": 1 / 7, "candidate": 3 / 7, "failed": 3 / 7, "filtered": 0.0
    }  # fmt: skip
    assert (found["lo"], found["hi"], found["converged"]) == (0.05, 0.15, None)
    assert (found["selected"], found["left"], found["new_fraction"]) == (2, 1, 1.0)
    assert [(f["trajectory"], f["frame"], f["max_devi_f"]) for f in found["frames_selected"]] == [
        ("iter-000003/000000", 3, 0.149),
        ("iter-000003/000000", 2, 0.10),
    ]
    assert found["deviation"]["max"] == 0.3
    assert found["deviation"]["median"] == pytest.approx((0.10 + 0.149) / 2)
    assert sum(found["histogram"]["counts"]) == 6
    assert found == read(tmp_path / "out")
    data = open_dataset([tmp_path / "out" / "selected"], TYPES)
    assert len(data) == 2
    np.testing.assert_array_equal(data[0].coord, frames[3].coord)
    assert data[0].energy is None
    assert data[0].force is None
    table = next((tmp_path / "out" / "selected").rglob("frames.csv")).read_text()
    assert "iter-000003/000000 frame 3,8,Al4Ni4" in table


def test_parts_of_an_exploration_are_joined_in_order(tmp_path: Path) -> None:
    def part(*numbers: int) -> dict[str, object]:
        return {f"{k:06d}": ([bulk(seed=k)], deviations([0.1])) for k in numbers}

    whole = make_explored(tmp_path / "p", part(0, 1, 2, 3))
    halves = [make_explored(tmp_path / "a", part(1, 3)), make_explored(tmp_path / "b", part(0, 2))]
    settings = config({"lo": 0.05, "hi": 0.2, "max_candidates": 3, **CHEAP})
    one = run_select(SelectInputs([whole]), settings, tmp_path / "one")
    two = run_select(SelectInputs(halves), settings, tmp_path / "two")
    assert one == two
    for file in sorted((tmp_path / "one" / "selected").rglob("*.npy")):
        other = tmp_path / "two" / file.relative_to(tmp_path / "one")
        assert file.read_bytes() == other.read_bytes()


def test_names_of_several_explorations_do_not_collide(tmp_path: Path) -> None:
    folders = [
        make_explored(tmp_path / f"e{k}", {"000000": ([bulk(seed=k)], deviations([0.1]))})
        for k in range(2)
    ]
    settings = config({"lo": 0.05, "hi": 0.2, **CHEAP})
    found = run_select(SelectInputs(folders), settings, tmp_path / "out")
    names = [f["trajectory"] for f in found["frames_selected"]]
    assert names == ["iter-000000/0/000000", "iter-000000/1/000000"]
    numbered = [
        make_explored(
            tmp_path / f"n{k}", {"000000": ([bulk(seed=k)], deviations([0.1]))}, iteration=k
        )
        for k in range(2)
    ]
    found = run_select(SelectInputs(numbered), settings, tmp_path / "out2")
    names = [f["trajectory"] for f in found["frames_selected"]]
    assert names == ["iter-000000/000000", "iter-000001/000000"]


@pytest.mark.parametrize("frames", [0, 2])
def test_nothing_to_select_is_no_error(tmp_path: Path, frames: int) -> None:
    some = [bulk(seed=k) for k in range(frames)]
    trajectories = {"000000": (some, deviations([0.01] * frames))}
    folder = make_explored(tmp_path / "x", trajectories)
    stage = {"hi": 0.15, **CHEAP, **({"lo": 0.05} if frames else {"adaptive": {}})}
    found = run_select(SelectInputs([folder]), config(stage), tmp_path / "out")
    assert (found["frames"], found["accurate"], found["selected"]) == (frames, frames, 0)
    assert list((tmp_path / "out" / "selected").iterdir()) == []
    assert (found["histogram"] is None) == (frames == 0)
    assert found["converged"] == (None if frames else False)
    # a second call replaces the first one's result
    assert run_select(SelectInputs([folder]), config(stage), tmp_path / "out") == found


def test_adaptive_level_and_its_convergence(tmp_path: Path) -> None:
    values = np.linspace(0.01, 0.30, 30)  # 0.01, 0.02, ...; 20 of them below hi
    frames = [bulk(seed=k) for k in range(30)]
    folder = make_explored(tmp_path / "x", {"000000": (frames, deviations(values))})
    stage = {"hi": 0.205, "adaptive": {"fraction": 0.25, "tolerance": 0.05}, **CHEAP}
    settings = SelectConfig.model_validate({"stages": [{"lo": 0.1, "hi": 0.2}, stage]})
    # the five largest below 0.205 are 0.20 ... 0.16; 0.15 of stage 0 does not count
    rows = [{"stage": 0, "lo": 0.16}, {"stage": 1, "lo": None}]
    file = decision(tmp_path / "decision.json", 1, rows)
    found = run_select(SelectInputs([folder], decision=file), settings, tmp_path / "a")
    assert found["stage"] == 1
    assert found["lo"] == pytest.approx(0.16)
    assert (found["accurate"], found["candidate"], found["failed"]) == (15, 5, 10)
    assert found["converged"] is False
    for earlier, converged in ((0.167, True), (0.170, False), (0.153, True), (0.151, False)):
        file = decision(tmp_path / "decision.json", 1, [*rows, {"stage": 1, "lo": earlier}])
        found = run_select(SelectInputs([folder], decision=file), settings, tmp_path / "a")
        assert found["converged"] is converged, earlier


def test_filters_count_by_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_filters.py").write_text(
        "def small(frame, elements):\n    return len(elements) < 9 and elements[0] == 'Al'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    good = bulk()
    close = good._replace(coord=good.coord * [0.2, 1, 1])
    skewed = good._replace(box=good.box @ [[1, 0, 0], [2, 1, 0], [0, 0, 1]])
    long = good._replace(box=good.box * [[1], [1], [4]])
    frames = [good, close, skewed, long]
    folder = make_explored(
        tmp_path / "x",
        {"000000": (frames, deviations([0.1] * 4)), "000001": ([bulk(12)], deviations([0.1]))},
    )
    filters = {"max_skew": 60, "max_length_ratio": 3, "functions": ["own_filters:small"]}
    settings = config({"lo": 0.05, "hi": 0.15, "filters": filters, **CHEAP})
    found = run_select(SelectInputs([folder]), settings, tmp_path / "out")
    assert found["rejected"] == {"distance": 1, "length": 1, "own_filters:small": 1, "skew": 1}
    assert (found["frames"], found["candidate"], found["filtered"], found["selected"]) == (
        5,
        1,
        4,
        1,
    )
    assert found["frames_selected"][0]["frame"] == 0


def test_box_angles_and_lengths() -> None:
    from ops.selection.filters import length_ratio, skew

    fcc = np.array([[0.0, 1, 1], [1, 0, 1], [1, 1, 0]])
    assert skew(np.diag([1.0, 2.0, 7.0])) == pytest.approx(0, abs=1e-5)
    assert skew(fcc) == pytest.approx(np.degrees(np.arccos(np.sqrt(2 / 3))))  # 35.3
    assert skew(np.array([[1.0, 0, 0], [1, 1, 0], [0, 0, 1]])) == pytest.approx(45)
    assert length_ratio(np.diag([2.0, 6.0, 3.0])) == 3


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (None, "cannot be imported"),
        ("raise RuntimeError('boom')", "importing it raised RuntimeError: boom"),
        ("keep = 3", "is a int, a function is needed"),
        ("def keep(frame, elements):\n    return 1 / 0", "raised ZeroDivisionError"),
        ("def keep(frame, elements):\n    pass", "returned None"),
    ],
)
def test_a_wrong_user_filter_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str | None, message: str
) -> None:
    name = f"user_filter_{abs(hash(body))}"
    if body is not None:
        (tmp_path / f"{name}.py").write_text(body + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    folder = make_explored(tmp_path / "x", {"000000": ([bulk()], deviations([0.1]))})
    settings = config({"lo": 0.05, "hi": 0.15, "filters": {"functions": [f"{name}:keep"]}, **CHEAP})
    with pytest.raises(ConfigError, match=message) as caught:
        run_select(SelectInputs([folder]), settings, tmp_path / "out")
    assert f"{name}:keep" in str(caught.value)


def test_copies_are_never_chosen(tmp_path: Path) -> None:
    frames = [bulk(seed=k) for k in range(4)]
    # the same structures, atoms in another order and moved by lattice vectors
    copies = [Frame((f.coord + f.box[0])[::-1], f.atype[::-1], f.box) for f in frames]
    explored = make_explored(
        tmp_path / "x", {"000000": ([*frames, *copies], deviations([0.1] * 8))}
    )
    write_mixed([copies[0]._replace(energy=1.0)], TYPES, tmp_path / "old")
    (tmp_path / "empty").mkdir()
    inputs = SelectInputs([explored], labelled=[tmp_path / "old", tmp_path / "empty"])
    for method in ({"lo": 0.05, "hi": 0.2, **CHEAP}, {"method": "random"}):
        found = run_select(inputs, config(method), tmp_path / "out")
        assert found["rejected"] == {"known": 2, "similar": 3}
        assert sorted(f["frame"] for f in found["frames_selected"]) == [1, 2, 3]
        assert found["new_fraction"] == 6 / 8


def test_random_draws_from_all_that_pass(tmp_path: Path) -> None:
    frames = [bulk(seed=k) for k in range(30)]
    folder = make_explored(tmp_path / "x", {"000000": (frames, deviations([np.nan] * 30))})
    drawn = {"method": "random", "max_candidates": 10}
    picks = []
    for seed in (1, 1, 2):
        found = run_select(SelectInputs([folder]), config(drawn, seed=seed), tmp_path / "out")
        assert (found["candidate"], found["selected"], found["lo"], found["hi"]) == (
            30,
            10,
            None,
            None,
        )
        picks.append([f["frame"] for f in found["frames_selected"]])
    assert picks[0] == picks[1] != picks[2]
    assert len(set(picks[0])) == 10


def test_type_map_of_the_result(tmp_path: Path) -> None:
    folder = make_explored(tmp_path / "x", {"000000": ([bulk()], deviations([0.1]))})
    stage = {"lo": 0.05, "hi": 0.15, **CHEAP}
    settings = config(stage, type_map=("Cu", "Ni", "Al"))
    run_select(SelectInputs([folder]), settings, tmp_path / "out")
    frame = open_dataset([tmp_path / "out" / "selected"], ("Cu", "Ni", "Al"))[0]
    np.testing.assert_array_equal(frame.atype, 2 - bulk().atype)
    with pytest.raises(DataError, match="Al"):
        run_select(SelectInputs([folder]), config(stage, type_map=("Ni",)), tmp_path / "out")


def test_files_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    folder = make_explored(tmp_path / "x", {"000000": ([bulk()], deviations([0.1, 0.1]))})
    with pytest.raises(DataError, match=r"1 frames, but model_devi\.out has 2 rows"):
        run_select(SelectInputs([folder]), config({"lo": 0.05, "hi": 1, **CHEAP}), tmp_path / "o")
    lost = deviations([0.1], devi_e=[np.nan])
    folder = make_explored(tmp_path / "y", {"000000": ([bulk()], lost)})
    stage = {"lo": 0.05, "hi": 1, "criterion": "devi_e", **CHEAP}
    with pytest.raises(DataError, match="no explored frame has a finite devi_e"):
        run_select(SelectInputs([folder]), config(stage), tmp_path / "o")
    with pytest.raises(DataError, match="got none"):
        run_select(SelectInputs([folder]), config({"lo": 0.05, "hi": 1}), tmp_path / "o")
    file = decision(tmp_path / "decision.json", 1, [])
    with pytest.raises(ConfigError, match="asks for stage 1"):
        run_select(SelectInputs([folder], decision=file), config(stage), tmp_path / "o")


def test_settings_explain_themselves() -> None:
    usual = SelectSettings.model_validate({"lo": 0.05, "hi": 0.15, "max_candidates": 50})
    assert (usual.method, usual.criterion, usual.diversity) == (
        "committee", "max_devi_f", "farthest"
    )  # fmt: skip
    for wrong, message in (
        ({}, "give the trust levels"),
        ({"hi": 0.1}, "either lo or adaptive"),
        ({"lo": 0.1, "hi": 0.2, "adaptive": {}}, "either lo or adaptive"),
        ({"lo": 0.2, "hi": 0.1}, r"lo \(0.2\) must be below hi \(0.1\)"),
    ):
        with pytest.raises(ValidationError, match=message):
            SelectSettings.model_validate(wrong)
    with pytest.raises(ConfigError, match="functions"):
        parse_config(SelectSettings, {"lo": 0, "hi": 1, "filters": {"functions": ["keep"]}}, "x")


def test_figure_of_the_deviation(tmp_path: Path) -> None:
    from ops.plots import png
    from ops.plots_loop import deviation_figure

    values = [0.01] * 5 + [0.07] * 3 + [0.4] * 2
    frames = [bulk(seed=k) for k in range(10)]
    folder = make_explored(tmp_path / "x", {"000000": (frames, deviations(values))})
    for stage in ({"lo": 0.05, "hi": 0.15, **CHEAP}, {"method": "random"}):
        found = run_select(SelectInputs([folder]), config(stage), tmp_path / "out")
        assert png(deviation_figure(found)).startswith(b"\x89PNG")
    assert png(deviation_figure(found | {"histogram": None})).startswith(b"\x89PNG")
    found = run_select(
        SelectInputs([folder]), config({"lo": 0.05, "hi": 0.15, **CHEAP}), tmp_path / "out"
    )
    (ax,) = deviation_figure(found).axes
    total = {bars.get_label(): sum(b.get_height() for b in bars) for bars in ax.containers}
    assert total == {"accurate 5": 5, "candidate 3": 3, "failed 2": 2}
