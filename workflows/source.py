"""What the tables and reports about a run are made from, beside the states of its steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workflows.run_folder import StepState

Row = dict[str, Any]


class Source:
    """A run as a person sees it; this base knows nothing but its name.

    Parameters
    ----------
    name
        What to write after `dpaflow status`: a folder, or the id of a run on a cluster.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def tail(self, key: str, lines: int) -> list[str]:
        """Return the last lines of a step's log."""
        return []

    def note(self, step: StepState) -> str:
        """Return one line about a running step."""
        return ""

    def log_place(self, key: str) -> str:
        """Return where the whole log of a step is."""
        return ""

    def advice(self, step: StepState) -> str:
        """Return what to do about a step that failed or cannot start, if its reason does not."""
        return ""

    def keeps_state(self) -> bool:
        """Return whether an interrupted training goes on from its checkpoint."""
        return True

    def trouble(self, failed: Sequence[StepState]) -> str | None:
        """Return what is wrong with the whole run, so that no step can tell why it failed."""
        return None

    def leftover(self) -> list[str]:
        """Return lines about a run that ended although no step failed."""
        return []

    def rows(self, states: Sequence[StepState]) -> list[Row]:
        """Return the table of the loop, see `ops.loop_rows`; [] without a loop."""
        return []
