"""A run on a cluster as a person sees it: states, logs, advice and the table of its loop."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dpa_core.errors import ConfigError
from workflows.backends.argo.client import ArgoClient
from workflows.backends.argo.reasons import advise, explain
from workflows.backends.argo.run import (
    ENDED,
    LABEL_RUN,
    LABEL_SEQUENCE,
    Run,
    load_run,
    plan_run,
)
from workflows.backends.argo.states import (
    Attempts,
    Carried,
    attempts,
    carried,
    decisions,
    pod_name,
    read_states,
    telling,
)
from workflows.backends.argo.transport import ServerError
from workflows.graph import Node
from workflows.iteration_rows import by_iteration, complete
from workflows.run_folder import StepState
from workflows.source import Row, Source

LOGS = "main-logs"
"""Artifact in which Argo keeps the log of a pod that is gone."""
Plan = tuple[Run, list[Node], dict[str, str]]


class ClusterRun(Source):
    """A run on an Argo server.

    Parameters
    ----------
    client
        The server.
    name
        Id of the run.
    """

    def __init__(self, client: ArgoClient, name: str) -> None:
        super().__init__(name)
        self.client = client
        self.workflows: list[dict[str, Any]] = []
        self._plans: dict[str, Plan] = {}

    def refresh(self) -> list[StepState]:
        """Ask the server how the run stands, and return the state of every step.

        Raises
        ------
        ConfigError
            If the server has no such run.
        """
        found = self.client.list(self.name)
        if not found:
            raise ConfigError(no_such_run(self.client, self.name))
        self.workflows = found
        _, nodes, prints = self.plan
        return read_states(nodes, prints, found, self.carried().steps)

    def carried(self) -> Carried:
        """Return what the oldest workflow took over from others, which are gone."""
        oldest = self.workflows[0]
        if (oldest["metadata"].get("labels") or {}).get(LABEL_SEQUENCE, "1") == "1":
            return Carried()
        try:
            made, _, prints = self._plan_of(oldest)
        except ConfigError:  # of another version
            return Carried()
        return carried(oldest, made, prints)

    @property
    def newest(self) -> dict[str, Any]:
        """The latest workflow."""
        return self.workflows[-1]

    @property
    def plan(self) -> Plan:
        """The run as its latest workflow carries it, its steps and their fingerprints."""
        return self._plan_of(self.newest)

    def _plan_of(self, workflow: dict[str, Any]) -> Plan:
        name = workflow["metadata"]["name"]
        if name not in self._plans:
            run = load_run(workflow)
            self._plans[name] = (run, *plan_run(run))
        return self._plans[name]

    @property
    def phase(self) -> str:
        """Phase of the latest workflow: Pending, Running, Succeeded, Failed or Error."""
        return str((self.newest.get("status") or {}).get("phase") or "Pending")

    @property
    def running(self) -> bool:
        """Whether the latest workflow has not ended."""
        return self.phase not in ENDED

    @property
    def stopped(self) -> bool:
        """Whether someone ended the latest workflow."""
        spec, message = self.newest["spec"], (self.newest.get("status") or {}).get("message")
        return not self.running and bool(spec.get("shutdown") or "trategy" in str(message or ""))

    def decision(self) -> dict[str, Any] | None:
        """Return what the loop decided last, None without a loop or before that."""
        found = decisions(self.workflows)
        return found[max(found)] if found else None

    def find(self, key: str) -> Attempts | None:
        """Return what the newest workflow that has begun a step says about it."""
        found = (attempts(workflow).get(key) for workflow in reversed(self.workflows))
        return next((step for step in found if step is not None), None)

    def log(self, key: str, lines: int | None = None) -> str:
        """Return the end of the log of a step's latest pod, all of it without `lines`.

        From the pod, else from the bucket, where Argo keeps it.
        """
        step = self.find(key)
        if step is None or not step.pods:
            return ""
        name = step.workflow["metadata"]["name"]
        try:
            text = self.client.pod_log(name, pod_name(step), lines)
        except ServerError:
            text = ""
        return text or self._kept_log(step)

    def _kept_log(self, step: Attempts) -> str:
        kept = [a["name"] for a in (step.pod.get("outputs") or {}).get("artifacts") or []]
        if LOGS not in kept:
            return ""
        with TemporaryDirectory(prefix="dpaflow-") as folder:
            target = Path(folder) / "log"
            try:
                self.client.artifact(step.workflow, step.pod["id"], LOGS, target)
            except ServerError:
                return ""
            return target.read_text(encoding="utf-8", errors="replace")

    def tail(self, key: str, lines: int) -> list[str]:
        """Return the last lines of a step's log."""
        found = [line.rstrip() for line in self.log(key, 4 * lines).splitlines()]
        return [line for line in found if line][-lines:]

    def note(self, step: StepState) -> str:
        """Return which attempt a running step is at; a look at every log would take too long."""
        status = step.status
        return f"attempt {status.attempts}" if status and status.attempts > 1 else ""

    def log_place(self, key: str) -> str:
        """Return where the whole log of a step is."""
        return f"dpaflow logs {self.name} {key}"

    def advice(self, step: StepState) -> str:
        """Return what to do about a step that failed or cannot start."""
        found = self.find(step.node.key)
        if found is None:
            return ""
        kind, _ = explain(telling(found), found.workflow)
        return advise(kind, step.node.key, step.node.op)

    def keeps_state(self) -> bool:
        """Return whether an interrupted training goes on from its checkpoint: on a volume only."""
        return self.plan[0].settings.cluster.workspace is not None

    def leftover(self) -> list[str]:
        """Return what the server says about a workflow that ended although no step failed."""
        status = self.newest.get("status") or {}
        name = self.newest["metadata"]["name"]
        told = " ".join(str(status.get("message") or "it gives no reason").split())
        return [f"workflow {name} ended ({self.phase}) before all steps were done: {told}"]

    def rows(self, states: Sequence[StepState]) -> list[Row]:
        """Return the table of the loop, from the outputs of the steps that decided."""
        known: dict[int, Row] = {}
        for _, decision in sorted(decisions(self.workflows).items()):
            known |= {row["iteration"]: row for row in decision.get("rows") or []}
        statuses = by_iteration(states)
        planned = {number for number in known if number in statuses}
        now = max((number for number, found in statuses.items() if found), default=None)
        current: Row = {}
        if now is not None:
            before = known.get(now - 1, {}).get("stage", 0)
            decided = self._decision_of(now - 1)
            current = {"iteration": now, "stage": decided.get("next_stage", before)}
        return complete([known[n] for n in sorted(planned)], statuses, states, current)

    def _decision_of(self, iteration: int) -> dict[str, Any]:
        return decisions(self.workflows).get(f"iter-{iteration:06d}-decide", {})


def no_such_run(client: ArgoClient, name: str) -> str:
    """Say that there is no such run, and which there are."""
    names = sorted({w["metadata"]["labels"][LABEL_RUN] for w in client.summaries()})
    place = f"{client.context.server}, namespace {client.context.namespace}"
    if not names:
        return f"no run {name!r} at {place}, nor any other; start one with `dpaflow submit`"
    close = difflib.get_close_matches(name, names, n=3)
    told = f"did you mean {', '.join(close)}?" if close else f"there are {', '.join(names[-12:])}"
    return f"no run {name!r} at {place}; {told}"
