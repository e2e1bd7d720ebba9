"""Pipelines whose steps are jobs, end to end: of a Slurm that is none, and of plain processes."""

import re
import sys
from pathlib import Path

import pytest

from tests.workflows.slurm import fake_slurm
from tests.workflows.slurm.conftest import COUNT
from workflows import run_folder

GOLDEN = Path(__file__).parent / "job.sh"
EVERYTHING = {
    "partition": "gpu", "account": "mat-sci", "qos": "normal", "nodes": 1, "tasks": 2, "cpus": 8,
    "gpus": 4, "gpu_type": "a100", "memory": "64G", "time": "1d", "constraint": "a100|h100",
    "options": ["--exclusive"], "prolog": ["module load cuda/12.4", "export NOTE='it'\"'\"'s'"],
}  # fmt: skip


def normal(text, site):
    """The script without what differs from machine to machine and run to run."""
    text = text.replace(str(site.folder.root), "/scratch/run").replace(sys.executable, "python")
    names = {found: f"HASH{k}" for k, found in
             enumerate(dict.fromkeys(re.findall(r"[0-9a-f]{40}", text)))}  # fmt: skip
    for found, name in names.items():
        text = text.replace(found, name)
    text = re.sub(r"(--job-name \w+)\.[0-9a-f]{8}", r"\1.RUNHASH", text)
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def test_every_setting_reaches_the_job(site, monkeypatch):
    site.fake()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    monkeypatch.setenv("ARGO_TOKEN", "planted-secret")
    nodes = [site.node("a", value=1), site.node("b", {"one": "a:number"}, value=2)]
    (site.folder.root.parent / "bin").mkdir()
    # a site's `module`, which the prolog calls
    monkeypatch.setenv("BASH_ENV", str(site.folder.root.parent / "module.sh"))
    (site.folder.root.parent / "module.sh").write_text("module() { true; }\n")
    result = site.run(nodes, slurm={"local": ["b"], "resources": {"default": EVERYTHING}})
    assert result.succeeded, result
    assert site.number("b") == 3
    assert site.jobs() == [("a", "COMPLETED")]  # b ran here

    workdir = site.folder.dflow / run_folder.WORKFLOW / "a" / "workdir"
    (script,) = workdir.glob(".*.sub")
    text = normal(script.read_text() + "# --- .sub.run\n" + Path(f"{script}.run").read_text(), site)
    if not GOLDEN.exists():  # delete it to write it anew
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()
    for path in site.folder.root.rglob("*"):
        assert not path.is_file() or b"planted-secret" not in path.read_bytes(), path


def test_a_step_that_fails_is_not_tried_again(site):
    result = site.run([site.node("a", fail="data"), site.node("b", {"one": "a:number"})])
    assert [step.state for step in result.states] == ["failed", "waiting"]
    assert site.reason("a") == "energy.npy: NaN in frame 3"
    assert site.calls.read_text().count("start") == 1
    log = (site.folder.steps / "a" / "step.log").read_text()
    assert "energy.npy: NaN in frame 3" in log


def test_sbatch_refuses(site):
    site.fake()
    (site.home / "refuse").write_text(
        "sbatch: error: invalid partition specified: gpuu\n"
        "sbatch: error: Batch job submission failed: Invalid partition name specified"
    )
    site.run([site.node("a")])
    assert site.states() == {"a": "failed"}
    reason = site.reason("a")
    assert "not submitted (sbatch: error: Batch job submission failed: Invalid part" in reason
    assert "execution.slurm.resources" in reason
    assert site.jobs() == []


@pytest.mark.slow
class TestKilled:
    """`dpaflow run` is killed, or its connection is lost; then it is resumed."""

    def nodes(self, site):
        a = site.node("a", op=COUNT, value=14, seconds=0.3)
        b = site.node("b", op=COUNT, value=3, seconds=0.1)
        return [a, b, site.node("c", {"parts": ["a:number", "b:number"]})]

    @pytest.mark.parametrize("forgets", [False, True])
    def test_jobs_running_and_queued_are_found_again(self, site, forgets):
        site.fake(slots=1)
        if forgets:
            (site.home / "forgets").touch()
        process = site.start(self.nodes(site))
        site.wait_for(lambda: len(site.jobs()) == 2 and len(site.counted("a")) > 1)
        site.kill(process)
        result = site.run(self.nodes(site))
        assert result.succeeded, result
        assert sorted(site.jobs()) == [(key, "COMPLETED") for key in "abc"]
        assert sorted(site.counted("a")) == list(range(14))  # one job did all of it
        assert site.number("c") == 17

    def test_jobs_that_ended_meanwhile_count(self, site):
        site.fake()
        process = site.start(self.nodes(site))
        site.wait_for(lambda: len(site.jobs()) == 2 and len(site.counted("a")) > 1)
        site.kill(process)
        site.wait_for(lambda: {state for _, state in site.jobs()} == {"COMPLETED"})
        assert site.run(self.nodes(site)).succeeded
        assert sorted(site.jobs()) == [(key, "COMPLETED") for key in "abc"]

    def test_jobs_with_other_settings_are_cancelled_first(self, site):
        site.fake()
        process = site.start(self.nodes(site))
        site.wait_for(lambda: len(site.counted("a")) > 1)
        site.kill(process)
        nodes = [site.node("a", op=COUNT, value=4, seconds=0.1), *self.nodes(site)[1:]]
        assert site.run(nodes).succeeded
        states = [state for key, state in site.jobs() if key == "a"]
        assert states == ["CANCELLED by 0", "COMPLETED"]
        assert site.number("c") == 7

    def test_processes_without_slurm_live_on_too(self, site):
        process = site.start(self.nodes(site))
        site.wait_for(lambda: len(site.counted("a")) > 1)
        site.kill(process)
        assert site.run(self.nodes(site)).succeeded
        assert sorted(site.counted("a")) == list(range(14))
        assert site.number("c") == 17


@pytest.mark.slow
@pytest.mark.parametrize("batch", ["slurm", "shell"])
def test_a_stop_cancels_the_jobs(site, batch):
    if batch == "slurm":
        site.fake(slots=1)
    nodes = [site.node("a", op=COUNT, value=20, seconds=0.3), site.node("b", value=1)]
    process = site.start(nodes)
    site.wait_for(lambda: len(site.counted("a")) > 1)
    process.terminate()
    assert process.wait(60) == 130
    states = run_folder.read_states(site.folder, live=False)
    assert states[0].state == "interrupted"
    if batch == "slurm":
        assert dict(site.jobs())["a"] == "CANCELLED by 0"
    before = len(site.counted("a"))
    assert site.run(nodes).succeeded
    assert sorted(set(site.counted("a"))) == list(range(20))
    assert site.counted("a")[before] >= before - 1  # went on, did not start over


@pytest.mark.slow
class TestEnds:
    """Jobs that do not end as they should."""

    def test_time_limit_of_the_job(self, site):
        site.fake(minute=3.0)  # so that Slurm is faster than the step's own clock
        limit = {"resources": {"default": {"time": "1min"}}}
        site.run([site.node("a", seconds=30)], slurm=limit)
        assert site.states() == {"a": "failed"}
        assert re.match(r"job 1 reached its time limit of 1 min; raise execution.slurm.resources."
                        r"tests.workflows.toy_ops:ADD.time$", site.reason("a"))  # fmt: skip
        assert "DUE TO TIME LIMIT" in (site.folder.steps / "a" / "step.log").read_text()
        assert site.jobs() == [("a", "TIMEOUT")]

    def test_training_goes_on_in_a_further_job(self, site):
        site.fake(minute=6.0)
        limit = {"resources": {"default": {"time": "1min"}}, "continuations": 20}
        node = site.node("a", op=COUNT, value=16, seconds=0.4)
        assert site.run([node], slurm=limit).succeeded
        assert site.number("a") == 16
        assert {state for _, state in site.jobs()[:-1]} == {"TIMEOUT"}  # at least one
        assert len(site.counted("a")) < 16 + len(site.jobs())

    def test_the_step_stops_itself_before_the_limit(self, site):
        site.fake()
        limit = {"resources": {"default": {"time": "2 s"}}}
        site.run([site.node("a", seconds=30)], slurm=limit)
        assert site.reason("a").startswith("job 1 reached its time limit of 0.0333333 min; raise")

    @pytest.mark.parametrize("accounting", [True, False])
    def test_lost_node(self, site, accounting):
        site.fake(accounting=accounting)
        process = site.start([site.node("a", op=COUNT, value=12, seconds=0.3)])
        site.wait_for(lambda: len(site.counted("a")) > 2)
        fake_slurm.lose(site.job("a"), "NODE_FAIL")
        assert process.wait(120) == 0
        assert site.jobs() == [("a", "NODE_FAIL"), ("a", "COMPLETED")]
        assert site.number("a") == 12
        assert len(site.counted("a")) <= 13  # went on

    def test_lost_too_often(self, site):
        site.fake(accounting=False)
        process = site.start([site.node("a", seconds=60)], retries=0)
        site.wait_for(site.calls.exists)
        fake_slurm.lose(site.job("a"), "NODE_FAIL")
        assert process.wait(60) == 1
        assert site.reason("a").startswith("job 1 vanished and Slurm does not know why")

    def test_cancelled_by_hand(self, site):
        site.fake()
        process = site.start([site.node("a", seconds=60)])
        site.wait_for(site.calls.exists)
        fake_slurm.scancel(["--quiet", site.job("a")])
        assert process.wait(60) == 1
        assert site.reason("a") == "job 1 was cancelled (scancel); resume to submit it again"

    def test_prolog_that_fails(self, site):
        site.fake()
        site.run([site.node("a")], slurm={"resources": {"default": {"prolog": ["exit 3"]}}})
        assert "ended (FAILED) before the step could begin" in site.reason("a")

    def test_slurm_away_for_a_while(self, site):
        site.fake()
        process = site.start([site.node("a", op=COUNT, value=10, seconds=0.3)])
        site.wait_for(lambda: len(site.counted("a")) > 1)
        (site.home / "down").write_text("slurm_load_jobs error: controller in standby mode")
        site.wait_for(lambda: len(site.counted("a")) > 6)
        (site.home / "down").unlink()
        assert process.wait(60) == 0
        assert site.jobs() == [("a", "COMPLETED")]
