"""The next batch is put together in the background while the model works on this one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Loads what is asked for in one thread, in the order it is asked for.

    As a context it has a thread, which ends with it; otherwise `get` loads by itself.

    Parameters
    ----------
    load
        Frame numbers -> batch. Its errors are raised by `get` of the same numbers.
    """

    def __init__(self, load: Callable[[Sequence[int]], T]) -> None:
        self._load = load
        self._thread: ThreadPoolExecutor | None = None
        self._asked: dict[tuple[int, ...], Future[T]] = {}

    def __enter__(self) -> Self:
        self._thread = ThreadPoolExecutor(1, "batches")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._thread = None
        self._asked.clear()

    def ask(self, indices: Sequence[int]) -> None:
        """Have these frames loaded, if they are not being loaded already."""
        if self._thread is not None and tuple(indices) not in self._asked:
            self._asked[tuple(indices)] = self._thread.submit(self._load, list(indices))

    def get(self, indices: Sequence[int]) -> T:
        """Batch of these frames, once it is there; it is handed out once."""
        # With a thread, all loading is its: two would work on one cache.
        self.ask(indices)
        asked = self._asked.pop(tuple(indices), None)
        return self._load(indices) if asked is None else asked.result()
