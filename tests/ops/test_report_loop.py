"""Pages about a loop, from step folders as the steps write them."""

import json
import re

import numpy as np
import pytest

from ops.plots_iterations import comparison_figure, iterations_figure
from ops.report import ReportConfig, ReportInputs, write_report
from ops.report_loop import IterationConfig, IterationInputs, write_iteration
from ops.report_section import Comparison, compared_kinds, hidden_steps
from tests import loop_folders as fake


def inputs(steps, number=0):
    head = f"iter-{number:06d}"
    return IterationInputs(
        explored=[steps / f"{head}-explore-p{k}" for k in (1, 0)],
        selected=steps / f"{head}-select",
        labels=[steps / f"{head}-label-g000"],
        collected=steps / f"{head}-collect",
        test=steps / f"{head}-test",
        decision=steps / f"{head}-decide/decision.json",
        trained={m: steps / f"{head}-train-{m}" for m in ("m0", "m1")},
    )


def cells(page, heading):
    """Texts of the rows of the first table below a heading."""
    part = page.split(f"<h2>{heading}</h2>")[1].split("</table>")[0]
    rows = re.findall(r"<tr.*?</tr>", part, re.DOTALL)
    strip = re.compile(r"<[^>]+>")
    return [[strip.sub(" ", c).strip() for c in re.findall(r"<td.*?</td>", row, re.DOTALL)]
            for row in rows[1:]]  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    steps = tmp_path_factory.mktemp("steps")
    rows = [fake.row(0, rmse_f_after=0.06)]
    fake.iteration(steps, 0, rows)
    config = IterationConfig(title="Al & Mg", iteration=0)
    return write_iteration(inputs(steps), config, steps / "out").read_text()


def test_page_says_what_happened(page):
    assert "<h1>Al &amp; Mg: iteration 0" in page
    assert "Goes on: stage warm: 80.0% accurate, 95.0% wanted." in page
    assert "80.0 % of 100 frames" in page
    assert cells(page, "Iterations") == [
        ["0", "warm", "100", "80.0", "15.0", "5.0", "50–150", "1", "2+1", "40", "61/320",
         "120→60", "88"]
    ]  # fmt: skip
    assert "3 trajectories: 2 completed, 1 stopped by deviation." in page
    # parts are put back into one order, whatever the order of the folders
    told = cells(page, "Exploration")
    assert [row[0] for row in told] == ["000000", "000001", "000002"]
    assert told[1][5] == "1.5"
    assert told[2][-1] == "deviation  step 120: max_devi_f 1.3 &gt; 1"


def test_page_lists_frames_labels_and_errors(page):
    frames = cells(page, "Selected frames")
    assert [row[-1] for row in frames] == ["100", "80.0", "60.0"]
    assert frames[0][3] == "Al2Mg2"
    assert "2 of 3 frames labelled, 1 of them known from before." in page
    (failed,) = cells(page, "Labels")
    assert failed[2:4] == ["2", "SCF &lt;not&gt; converged"]
    assert failed[4].startswith("failed/" + "bb" * 8)
    errors = cells(page, "Errors")
    assert errors[0][:2] == ["new frames, before training on them", "m0"]
    assert errors[0][-1] == "150"
    assert errors[2][0] == "new frames of the iteration before, after training on them"
    assert page.count("<img") == 3  # deviation, parity and training curves
    assert cells(page, "Training of the committee") == [
        ["m0", "40", "100", "61 s"], ["m1", "40", "100", "61 s"],
    ]  # fmt: skip


def test_page_is_one_file(page):
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "http" not in re.sub(r'"data:[^"]*"', "", page)


@pytest.mark.parametrize("until", ["none", "explore-p1", "select", "label-g000", "test"])
def test_what_is_missing_is_left_out(tmp_path, until):
    if until != "none":
        fake.iteration(tmp_path, 0, until=until)
    given = inputs(tmp_path)
    if until == "none":
        given = given._replace(collected=None, test=None, trained={}, labels=[], explored=[])
    page = write_iteration(given, IterationConfig(), tmp_path / "out").read_text()
    assert "iteration 0" in page
    assert ("<h2>Labels" in page) == (until in ("label-g000", "test"))
    assert "<h2>Iterations" not in page


def test_nothing_selected_is_a_page_too(tmp_path):
    fake.iteration(tmp_path, 0)
    empty = {
        "version": 1, "stage": 0, "frames": 0, "accurate": 0, "candidate": 0, "failed": 0,
        "fractions": {}, "lo": None, "hi": None, "rejected": {}, "selected": 0,
        "deviation": {"mean": None, "median": None, "p95": None, "max": None},
        "histogram": None, "converged": None, "frames_selected": [],
    }  # fmt: skip
    fake.write(tmp_path / "iter-000000-select/select.json", empty)
    fake.write(tmp_path / "iter-000000-label-g000/labels.json", {"version": 1, "tasks": []})
    fake.write(tmp_path / "iter-000000-test/results.json", {"results": []})
    page = write_iteration(inputs(tmp_path), IterationConfig(), tmp_path / "out").read_text()
    assert "<h2>Selected frames" not in page


def loop_run(steps, *, final=True):
    """Folders of a loop of two iterations, with a comparison; return the artifacts."""
    rows = [fake.row(0, rmse_f_after=0.06),
            fake.row(1, verdict="max_iterations", test={"md": {"rmse_f": 0.07}})]  # fmt: skip
    for number in range(2):
        fake.iteration(steps, number, rows[: number + 1])
    advice = "Raise max_iterations and resume to go on."
    fake.write(steps / "iter-000001-decide/decision.json",
               fake.decision(rows, "max_iterations", advice=advice))  # fmt: skip
    if final:
        fake.train(steps / "final-train-m0", 44)
        models = ["start-m0", "start-m1", "final-m0", *(f"random-s{s:03d}" for s in (1, 2, 3))]
        fake.write_test(steps / "final-test", models, ("md",))
        for seed in (1, 2, 3):
            fake.train(steps / f"compare-random-s{seed:03d}-train", 44)
            fake.collect(steps / f"compare-random-s{seed:03d}-collect")
    return {path.name: path for path in sorted(steps.iterdir()) if path.name != "out"}


def test_final_report_sums_up_the_loop(tmp_path):
    artifacts = loop_run(tmp_path)
    page = write_report(ReportInputs(artifacts), ReportConfig(title="x"), tmp_path / "out")
    page = page.read_text()
    assert "Max_iterations" not in page
    assert "Not converged after 2 iterations and 4 labels" in page
    assert "Raise max_iterations and resume" in page
    assert len(cells(page, "Concurrent learning")) == 2
    # errors are 50 + 10 m meV/Å for model m of the list, + 100 for the first data set
    assert (
        "starting model (40 training frames) 155 ± 7 (2 runs) meV/Å; "
        "concurrent learning (44 training frames) 170 meV/Å; "
        "random selection (44 training frames) 190 ± 10 (3 runs) meV/Å."
    ) in page
    shown = re.sub(r'"data:[^"]*"', "", page)
    assert "previous" not in shown.split("<h2>Results</h2>")[1]
    assert "compare-random-s001-collect" not in shown.split("<h2>Steps</h2>")[0]
    assert "iter-000000-train" not in shown.split("<h2>Steps</h2>")[0]


def test_without_final_steps_the_last_iteration_is_shown(tmp_path):
    artifacts = loop_run(tmp_path, final=False)
    page = write_report(ReportInputs(artifacts), ReportConfig(), tmp_path / "out").read_text()
    results = page.split("<h2>Results</h2>")[1]
    assert "previous" in results
    assert hidden_steps(artifacts) == {n for n in artifacts if n.startswith("iter-000000")}


def test_comparison_by_name_and_by_settings(tmp_path):
    fake.train(tmp_path / "final-train-m1", 50)
    artifacts = {"final-train-m1": tmp_path / "final-train-m1"}
    results = [{"model": "final-m1"}, {"model": "pretrain-dpa1"}]
    assert compared_kinds(None, results, artifacts) == {
        "final-m1": ("concurrent learning", 50),
        "final-train-m1": ("concurrent learning", 50),
    }
    given = (
        Comparison(model="final-train-m1", kind="a"),
        Comparison(model="b", kind="b", frames=7),
    )
    assert compared_kinds(given, results, artifacts) == {
        "final-train-m1": ("a", 50), "b": ("b", 7),
    }  # fmt: skip


def test_figures_show_the_numbers():
    rows = [fake.row(0, rmse_f_after=0.06), fake.row(1, rmse_f_new=None, labelled=5)]
    fractions, errors, labels = iterations_figure(rows).axes
    assert [bar.get_height() for bar in fractions.patches][:2] == [80, 80]
    assert [list(line.get_ydata()) for line in errors.lines] == [
        pytest.approx([120]), pytest.approx([60]), pytest.approx([87.5, 87.5]),
    ]  # fmt: skip
    assert [bar.get_height() for bar in labels.patches] == [2, 7]
    (ax,) = comparison_figure([(40, 0.1), (44, 0.05)], {"random": {44: [0.06, 0.08]}}).axes
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [100, 50])
    (points,) = ax.containers
    assert [float(y) for y in points.lines[0].get_ydata()] == pytest.approx([70])
    (ends,) = points.lines[2][0].get_segments()
    assert [float(y) for _, y in ends] == pytest.approx([60, 80])


def test_the_figure_of_an_iteration_without_frames():
    bare = {"iteration": 0, "explored": 0, "labelled": 0, "accurate": 0}
    assert len(iterations_figure([bare]).axes) == 3


def test_results_json_with_nulls_is_no_error(tmp_path):
    fake.iteration(tmp_path, 0)
    path = tmp_path / "iter-000000-test/results.json"
    document = json.loads(path.read_text())
    document["results"][0]["overall"] = {"nframes": 3, "rmse_e": None, "rmse_f": None}
    path.write_text(json.dumps(document))
    page = write_iteration(inputs(tmp_path), IterationConfig(), tmp_path / "out").read_text()
    assert cells(page, "Errors")[0][2:] == ["3", "–", "–"]
