"""What goes wrong with pods when a test wants it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

from tests.argo_server.podspec import main_of
from tests.argo_server.validate import amount

BEFORE = ("image", "unschedulable")
"""Faults of pods that do not start."""


@dataclass
class Fault:
    """Something that goes wrong with pods whose name, as the dashboard shows it, matches.

    Attributes
    ----------
    pod
        Pattern such as "collect-known(0)".
    kind
        kill, oom, delete, evict, image, unschedulable.
    after
        Seconds after the start of the pod's process.
    when
        Instead: pattern of a file in the pod's folder that has to be there.
    below
        Only in pods with less memory, such as "12Gi".
    times
        How many pods it hits; None for all.
    """

    pod: str
    kind: str
    after: float = 0.0
    when: str | None = None
    below: str | None = None
    times: int | None = 1
    hit: list[str] = field(default_factory=list)

    def meets(self, name: str, spec: Mapping[str, Any]) -> bool:
        if name in self.hit:
            return True
        memory = main_of(spec).get("resources", {}).get("limits", {}).get("memory", "0")
        small = self.below is None or amount(memory) < amount(self.below)
        free = self.times is None or len(self.hit) < self.times
        # brackets are part of names
        return fnmatch(name, self.pod.replace("[", "[[]")) and small and free

    def note(self, name: str) -> None:
        """Remember that it hit a pod."""
        if name not in self.hit:
            self.hit.append(name)


def kill_tree(pid: int) -> None:
    """End a process and all it started: a container leaves nothing behind."""
    import psutil

    victims: list[Any] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        victims = [parent, *parent.children(recursive=True)]
    for victim in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
