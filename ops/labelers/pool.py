"""Labels that a data set already has, revealed for the structures that are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dpa_core.errors import ConfigError
from ops.labelers.base import BaseLabeler, Context, Job, Label, LabelFailed, Structure

if TYPE_CHECKING:
    from dpa_core.frames import Frame


class PoolLabeler(BaseLabeler):
    """Look labels up in a labelled data set: to replay active learning without a code."""

    stored: ClassVar[bool] = False

    type: Literal["pool"]
    """Which labeler this is."""
    data: str
    """Name of the data set."""

    def identity(self, elements: Sequence[str]) -> dict[str, Any]:
        """Return the name of the data set."""
        return {"type": "pool", "data": self.data}

    def start(self, context: Context) -> Label:
        """Index the data set by exact structure."""
        from dpa_core.data import open_dataset

        if self.data not in context.data:
            known = ", ".join(context.data) or "none"
            raise ConfigError(f"label.data: no data set is called {self.data!r}; there are {known}")
        pool = open_dataset(context.data[self.data])
        index: dict[str, int] = {}
        for k in range(len(pool)):
            index.setdefault(Structure.of(pool[k], pool.type_map).digest(), k)

        def label(job: Job) -> Frame:
            k = index.get(job.structure.digest())
            if k is None:
                raise LabelFailed(
                    f"no frame of {self.data} is exactly this structure ({job.structure.formula()})"
                )
            frame = pool[k]
            frame = frame._replace(atype=frame.atype[frame.atype >= 0])
            if frame.energy is None or frame.force is None:
                raise LabelFailed(f"{pool.name(k)}: no energy and forces")
            names = sorted(set(job.structure.elements))
            position = [names.index(e) if e in names else -1 for e in pool.type_map]
            types = frame.atype.copy()
            types[:] = [position[t] for t in frame.atype]
            return frame._replace(atype=types)

        return label
