"""Several processes training one model (torchrun), without the DDP wrapper.

The wrapper hooks into the first backward pass and does not support the second one that a
force loss needs. Instead all processes draw the same joint batch, each takes its share of
the frames, and the gradients are summed; the result is that of one process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

# Rank 0 computes the statistics of the data while the others wait.
_TIMEOUT = timedelta(hours=2)
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """The processes of a run.

    Attributes
    ----------
    rank, size
        Number of this process and of all.
    device
        Where this process computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = _CPU

    @property
    def first(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def sum(self, x: Tensor) -> Tensor:
        """Sum over the processes; `x` itself when there is only one."""
        if self.size > 1:
            x = x.clone()
            dist.all_reduce(x)
        return x

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0)

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.size > 1:
            dist.barrier()

    def share(self, indices: Sequence[int], natoms: NDArray) -> list[int]:
        """Choose this process's frames of a joint batch, balanced by atoms; may be empty."""
        load, mine = [0] * self.size, []
        for k in sorted(indices, key=lambda k: (-int(natoms[k]), k)):
            rank = load.index(min(load))
            load[rank] += int(natoms[k])
            if rank == self.rank:
                mine.append(k)
        return mine if self.size > 1 else list(indices)

    def broadcast_text(self, text: str | None) -> str:
        """Send the first process's text to every process (the others pass None)."""
        if self.size == 1:
            return text or ""
        data = torch.tensor(list((text or "").encode()), dtype=torch.uint8, device=self.device)
        length = torch.tensor(len(data), device=self.device)
        dist.broadcast(length, 0)
        if not self.first:
            data = torch.zeros(int(length), dtype=torch.uint8, device=self.device)
        dist.broadcast(data, 0)
        return bytes(data.tolist()).decode()

    def broadcast_model(self, model: nn.Module) -> None:
        """Overwrite weights and buffers by those of the first process."""
        if self.size > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, 0)


@contextmanager
def connect() -> Iterator[World]:
    """Join the processes torchrun has started; one process without torchrun.

    Uses a GPU where there is one (NCCL between several), else the CPU (gloo).
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    device = _CPU
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if size == 1 or dist.is_initialized():
        yield World(rank, size, device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield World(rank, size, device)
    finally:
        dist.destroy_process_group()
