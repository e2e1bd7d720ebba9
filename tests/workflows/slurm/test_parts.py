"""The parts of the Slurm backend, each by itself."""

import itertools
import os
import re
import subprocess
import time

import psutil
import pytest
from pydantic import ValidationError

from dpa_core.config import parse_config
from dpa_core.errors import ConfigError
from ops.base import STATUS, Status
from ops.files import write_json
from tests.workflows.slurm import fake_slurm
from tests.workflows.test_docs import ROOT, blocks, tables
from workflows import run_folder
from workflows.backends.slurm import job, leftovers, queue
from workflows.backends.slurm.ends import JobSpec, again, refused, verdict
from workflows.backends.slurm.script import dispatcher_resources, slurm_time
from workflows.graph import Node, fingerprints
from workflows.pipeline import plan
from workflows.schema import Execution, load_pipeline
from workflows.schema_slurm import Slurm, SlurmResources


class TestSettings:
    def test_by_step(self):
        slurm = Slurm.model_validate({"local": "decide", "resources": {
            "default": {"partition": "cpu", "time": "2h", "prolog": "module load x"},
            "train": {"partition": "gpu", "gpus": 1},
            "train-water": {"time": "7d"},
        }})  # fmt: skip
        assert slurm.resources_for("train-water-s1", "train").time == 7 * 86400
        assert slurm.resources_for("train-water-s1", "train").partition == "cpu"
        assert slurm.resources_for("train-waters", "train").gpus == 1
        assert slurm.resources_for("report", "report").time == 7200
        assert slurm.resources_for("train-x", "train").prolog == ("module load x",)
        assert Slurm().resources_for("a", "b") == SlurmResources()
        assert slurm.is_local("iter-000000-decide", "decide")
        assert not slurm.is_local("iter-000000-label", "label")

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"options": ["exclusive"]}, "no option of sbatch; write e.g. --exclusive"),
            ({"options": ["--x\n#SBATCH --y"]}, "no option of sbatch"),
            ({"partition": "gpu; rm -r"}, "partition"),
            ({"prolog": ["a\nb"]}, "prolog"),
            ({"memory": "16Gi"}, "memory"),
            ({"time": "01:00:00"}, r"write 90 \(seconds\), 30min, 2h or 7d"),
            ({"gpu_type": "a100"}, "say how many, gpus: 1"),
        ],
    )
    def test_mistakes(self, settings, message):
        with pytest.raises(ConfigError, match=message):
            parse_config(Slurm, {"resources": {"train": settings}}, "pipeline.yaml")

    def test_the_step_ends_before_the_job(self):
        assert SlurmResources(time=7200).step_seconds() == 7200 - 150
        assert SlurmResources(time=100).step_seconds() == 80
        assert SlurmResources().step_seconds() is None
        settings = {"backend": "slurm", "slurm": {"local": ["report"], "resources": {
            "train": {"time": 7200}}}}  # fmt: skip
        assert Execution(**settings, timeout=9000).step_timeout("train-a", "train") == 7050
        assert Execution(**settings, timeout=60).step_timeout("train-a", "train") == 60
        assert Execution(**settings, timeout=9000).step_timeout("report", "report") == 9000
        assert Execution(**settings).step_timeout("test-a", "test") is None
        assert Execution(slurm=settings["slurm"]).step_timeout("train-a", "train") is None

    def test_time_of_slurm(self):
        assert slurm_time(1) == "0-00:01:00"
        assert slurm_time(5400) == "0-01:30:00"
        assert slurm_time(7 * 86400 + 61) == "7-00:02:00"


def spec(op="train", **settings):
    settings = {"fingerprint": "f", "name": "a.1", "batch": "slurm", "environment": {}, "poll": 1,
                "resources": {"memory": "16G", "time": 7200}, **settings}  # fmt: skip
    return JobSpec(key="a", op=op, **settings)


class TestEnds:
    running = Status("a", "train", "running", fingerprint="f", started="x", attempts=2)

    @pytest.mark.parametrize(
        ("state", "kind", "reason", "helps"),
        [
            ("TIMEOUT", "timeout", "its time limit of 120 min; raise execution.slurm.resources.tra"
             "in.time, or let further jobs go on where it stopped: execution.slurm.continua",
             "limit"),
            ("OUT_OF_MEMORY", "killed", "more memory than it asked for .16G.; raise execution.slu",
             ""),
            ("NODE_FAIL", "transient", "job 7 lost its node .NODE_FAIL.", "lost"),
            ("PREEMPTED", "transient", "job 7 lost its node", "lost"),
            ("CANCELLED", "interrupted", "job 7 was cancelled", ""),
            ("COMPLETED", "fatal", "is the run's folder on a file system that login and comp", ""),
            ("FAILED", "fatal", "job 7 ended .FAILED. and the step could not say why; the last it "
             "printed: oh dear", ""),
            ("", "transient", "job 7 vanished and Slurm does not know why.*oh dear", "lost"),
        ],
    )  # fmt: skip
    def test_of_a_job_whose_step_was_cut_off(self, state, kind, reason, helps):
        end = verdict(spec(), self.running, "7", state, "oh dear")
        assert (end.state, end.kind) == ("failed", kind)
        assert re.search(reason, end.reason), end.reason
        assert end.attempts == 2
        assert again(spec(), self.running, end) == helps

    def test_before_the_step_began(self):
        for status in (None, self.running._replace(state="queued")):
            end = verdict(spec(), status, "7", "FAILED", "module: command not found")
            assert "before the step could begin" in end.reason
            assert "the last it printed: module: command not found" in end.reason

    def test_a_step_that_could_speak_is_believed(self):
        for state in ("succeeded", "failed", "paused"):
            own = self.running._replace(state=state, reason="mine", kind="transient")
            assert verdict(spec(), own, "7", "NODE_FAIL", "") == own
            assert again(spec(), own, own) == ""  # it has tried again itself

    def test_a_status_of_other_settings_is_not(self):
        old = self.running._replace(state="succeeded", fingerprint="old")
        assert verdict(spec(), old, "7", "TIMEOUT", "").kind == "timeout"

    def test_whose_time_limit_it_was(self):
        own = self.running._replace(state="failed", kind="timeout", reason="raise it")
        assert "job 7 reached its time limit" in verdict(spec(), own, "7", "FAILED", "").reason
        assert again(spec(), own, own) == "limit"
        mine = spec(timeout=60)
        assert verdict(mine, own, "7", "FAILED", "").reason == "raise it"
        assert again(mine, own, own) == ""
        assert again(spec(op="test"), own, own) == ""  # would start over

    def test_the_memory_of_a_child(self):
        own = self.running._replace(state="failed", kind="killed", reason="killed (SIGKILL)")
        assert "16G" in verdict(spec(), own, "7", "OUT_OF_MEMORY", "").reason
        assert verdict(spec(), own, "7", "FAILED", "").reason == "killed (SIGKILL)"

    def test_not_submitted(self):
        text = "Failed\nUnderlying job error: x\nerror message:sbatch: error: y\n"
        error = RuntimeError(f"{text}sbatch: error: Invalid account\n")
        assert refused(spec(), error).kind == "config"
        assert "(sbatch: error: Invalid account)" in refused(spec(), error).reason
        away = RuntimeError("sbatch: error: Unable to contact slurm controller")
        assert refused(spec(), away).kind == "transient"
        lead = queue.QueueError("job 3 is at work")
        assert refused(spec(), lead).reason == "job 3 is at work"


class TestClaim:
    def test_only_one_job_has_a_folder(self, tmp_path, monkeypatch):
        monkeypatch.setenv(job.STEP, "a")
        claim = job.claim_file(tmp_path / "steps", "a")
        with job.claimed(claim, "1"):
            other = job.claimed(claim, "2")
            with pytest.raises(SystemExit, match=r"job 1 is at work in .*steps/a; this one, 2,"):
                other.__enter__()
            assert job.read_claim(claim) == "1"
        assert job.read_claim(claim) == ""

    def test_a_requeued_job_finds_its_own(self, tmp_path):
        claim = job.claim_file(tmp_path, "a")
        claim.write_text("1")
        with job.claimed(claim, "1"):
            assert job.read_claim(claim) == "1"

    def test_given_back_when_the_step_fails(self, tmp_path):
        claim = job.claim_file(tmp_path, "a")
        with pytest.raises(ValueError, match="oops"), job.claimed(claim, "1"):
            raise ValueError("oops")
        assert not claim.exists()


class TestFoundAgain:
    """Which jobs of an earlier run are followed on, on folders written by hand."""

    def candidates(self, tmp_path, live=(), **change):
        folder = run_folder.RunFolder(tmp_path)
        nodes = [Node("a", "x", {}), Node("b", "x", {}, {"one": "a:f"}), Node("c", "x", {})]
        prints = fingerprints(nodes)
        steps = {"a": ("succeeded", "Succeeded"), "b": ("running", "Running"),
                 "c": ("succeeded", "Running"), **change}  # fmt: skip
        for key, (state, phase) in steps.items():
            status = Status(key, "x", state, fingerprint=prints[key])
            write_json(folder.steps / key / STATUS, status._asdict())
            place = folder.dflow / run_folder.WORKFLOW / key
            place.mkdir(parents=True, exist_ok=True)
            (place / "phase").write_text(phase)
        jobs = {key: queue.Job("1", key, "RUNNING") for key in live}
        return leftovers._candidates(nodes, prints, folder, jobs)

    def test_alive_or_done(self, tmp_path):
        assert self.candidates(tmp_path, live="b") == {"b", "c"}

    def test_dead(self, tmp_path):
        assert self.candidates(tmp_path) == {"c"}

    def test_what_it_reads_is_made_anew(self, tmp_path):
        assert self.candidates(tmp_path, live="b", a=("failed", "Failed")) == {"c"}

    def test_dflow_gave_it_up(self, tmp_path):
        assert self.candidates(tmp_path, live="b", b=("queued", "Failed")) == {"c"}

    def test_names_tell_runs_apart(self, tmp_path):
        names = {leftovers.job_name("a", run_folder.RunFolder(tmp_path / x)) for x in "12"}
        assert len(names) == 2


class TestQueue:
    @pytest.fixture
    def home(self, tmp_path, monkeypatch):
        for name, value in fake_slurm.set_up(tmp_path / "slurm").items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("SQUEUE_FORMAT", "%A")  # a user's own taste
        jobs = zip(itertools.count(1), ["PENDING", "RUNNING", "CANCELLED by 0", "OUT_OF_MEMORY"],
                   strict=False)  # fmt: skip
        for number, state in jobs:
            write_json(tmp_path / "slurm" / "jobs" / f"{number}.json",
                       {"id": str(number), "name": f"n{number}", "state": state, "reason": "x|y",
                        "stepd": 2**30})  # fmt: skip
        return tmp_path / "slurm"

    def test_what_slurm_says(self, home):
        slurm = queue.SlurmQueue()
        found = slurm.jobs()
        assert [(job.id, job.state, job.waits) for job in found] == [
            ("1", "PENDING", True), ("2", "RUNNING", False),
        ]  # fmt: skip
        assert [slurm.end(number) for number in "234"] == ["", "CANCELLED", "OUT_OF_MEMORY"]
        (home / "forgets").touch()  # scontrol does, sacct does not
        assert [slurm.end(number) for number in "349"] == ["CANCELLED", "OUT_OF_MEMORY", ""]

    def test_slurm_is_away(self, home, tmp_path, monkeypatch):
        (home / "down").write_text("slurm_load_jobs error: Unable to contact slurm controller")
        with pytest.raises(queue.QueueError, match="squeue failed: slurm_load_jobs error: Unable"):
            queue.SlurmQueue().jobs()
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(queue.QueueError, match="there is no squeue on this machine; run"):
            queue.SlurmQueue().jobs()
        with pytest.raises(ConfigError, match="has no sbatch, squeue, scancel; run dpaflow on a"):
            leftovers.require(Execution(backend="slurm"))
        leftovers.require(Execution(backend="slurm", slurm={"batch": "shell"}))

    def test_a_job_that_does_not_end(self, home, monkeypatch):
        monkeypatch.setattr(queue, "CANCEL_PATIENCE", 0)
        slurm = queue.SlurmQueue()
        with pytest.raises(queue.QueueError, match="job 2 was cancelled but does not end; look"):
            queue.end_jobs(slurm, slurm.jobs()[1:])

    def test_processes_with_all_their_children(self, monkeypatch):
        name = f"a.{id(self)}"
        monkeypatch.setenv(job.MARK, name)
        child = subprocess.Popen(["setsid", "sh", "-c", "sleep 60 & sleep 60"])
        monkeypatch.delenv(job.MARK)
        shell = queue.ShellQueue()
        mine = [found for found in shell.jobs() if found.name == name]
        assert [found.id for found in mine] == [name]
        queue.end_jobs(shell, mine)
        child.wait(10)
        assert name not in {found.name for found in shell.jobs()}

    def test_a_process_that_is_starting_a_program(self, monkeypatch):
        """Linux says that it has no environment; its job has not ended."""
        right, asked = psutil.Process.environ, set()

        def starting(process):
            first = process.pid not in asked
            asked.add(process.pid)
            return {} if first else right(process)

        name = f"a.{id(self)}"
        child = subprocess.Popen(["sleep", "60"], env=os.environ | {job.MARK: name})
        monkeypatch.setattr(psutil.Process, "environ", starting)
        try:
            assert name in {found.name for found in queue.ShellQueue().jobs()}
        finally:
            child.kill()
            child.wait()


def test_what_dpdispatcher_is_told():
    given = dispatcher_resources(spec(resources={"gpus": 2, "tasks": 4, "nodes": 3}))
    assert given["kwargs"]["custom_gpu_line"] == "#SBATCH --gres=gpu:2"
    assert (given["number_node"], given["cpu_per_node"]) == (3, 4)
    assert dispatcher_resources(spec(resources={}))["kwargs"] == {}


def test_unknown_settings_are_refused():
    with pytest.raises(ValidationError, match="partitions"):
        SlurmResources.model_validate({"partitions": "gpu"})


def test_a_run_of_another_login_node_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "HEARTBEAT", 0.05)
    folder = run_folder.RunFolder(tmp_path)
    with run_folder.locked(folder):
        text, begin = folder.owner.read_text(), folder.owner.stat().st_mtime_ns
        for _ in range(100):
            time.sleep(0.05)
            if folder.owner.stat().st_mtime_ns > begin:
                break
        else:
            pytest.fail("no sign of life")
    assert not folder.owner.exists()
    monkeypatch.setattr(run_folder, "HEARTBEAT", 15)
    folder.owner.write_text(text.partition(" on ")[0] + " on login2")
    assert run_folder.is_running(folder)
    with (
        pytest.raises(ConfigError, match=r"run by process \d+ on login2"),
        run_folder.locked(folder),
    ):
        pytest.fail("two runs of one folder")
    os.utime(folder.owner, (0, time.time() - 61))  # it was killed
    assert not run_folder.is_running(folder)
    with run_folder.locked(folder):
        assert "login2" not in folder.owner.read_text()


def test_a_training_uses_all_gpus_of_its_job():
    from workflows.backends.slurm.executor import on_gpus

    execution = Execution(backend="slurm", slurm={"resources": {"default": {"gpus": 4}}})
    assert on_gpus(Node("a", "train", {}), execution).config == {"nproc": 4}
    assert on_gpus(Node("a", "train", {"nproc": 2}), execution).config == {"nproc": 2}
    assert on_gpus(Node("a", "label", {}), execution).config == {}


class TestPages:
    page = (ROOT / "docs/slurm.md").read_text(encoding="utf-8")

    def test_settings_on_the_page(self):
        (block,) = blocks(self.page)
        assert set(block) == {"execution"}
        execution = parse_config(Execution, block["execution"], "docs/slurm.md")
        assert execution.slurm.resources_for("final-train-m0", "train").gpus == 4
        for owner in (SlurmResources, Slurm):
            what = "resources" if owner is SlurmResources else "execution.slurm"
            told = dict.fromkeys(
                name
                for keys, default, *_ in tables(self.page, f"key of `{what}`")
                for name in re.findall(r"`(\w+)`", keys)
            )
            assert set(told) == set(owner.model_fields) - {"resources"}

    def test_the_example_is_valid(self, tmp_path):
        for name in ("unary", "binary", "ternary"):
            (tmp_path / f"{name}.extxyz").touch()
        path = ROOT / "examples/slurm/pipeline.yaml"
        pipeline = load_pipeline(path, {"DEMO_DATA": str(tmp_path)})
        assert plan(pipeline)
        assert pipeline.execution.slurm.batch == "slurm"
