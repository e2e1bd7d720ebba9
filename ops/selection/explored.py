"""Read what explore steps left, and what is labelled already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpa_core.errors import DataError
from ops.files import holds_frames, read_json

if TYPE_CHECKING:
    from dpa_core.data import Dataset

Array = NDArray[np.float64]


class Explored(NamedTuple):
    """Explored frames of all trajectories, one after another.

    Attributes
    ----------
    data
        The F frames; None if there are none.
    names
        (F,) name of the trajectory of every frame.
    numbers
        (F,) number of the frame in its trajectory.
    deviation
        Column of model_devi.out -> (F,) values.
    """

    data: Dataset | None
    names: list[str]
    numbers: list[int]
    deviation: dict[str, Array]

    @property
    def nframes(self) -> int:
        """Number of frames F."""
        return len(self.names)


def read_explored(
    folders: Sequence[Path], type_map: Sequence[str] | None, iteration: int = 0
) -> Explored:
    """Read what explore steps left; the parts of one exploration are joined by trajectory name.

    Parameters
    ----------
    folders
        Folders with explore.json.
    type_map
        Names of the types; None: the elements found.
    iteration
        Number of the iteration, where explore.json does not tell it.

    Raises
    ------
    DataError
        A trajectory whose number of frames is not that of its deviations.
    """
    from dpa_core.committee import Deviation, read_model_devi
    from dpa_core.data import open_dataset

    found = sorted(_trajectories(folders, iteration))
    deviations = [read_model_devi(path / "model_devi.out")[1] for _, path in found]
    sizes = [len(d.max_devi_f) for d in deviations]
    paths = [path for (_, path), size in zip(found, sizes, strict=True) if size]
    data = open_dataset(paths, type_map) if paths else None
    frames: Counter[Path] = Counter()
    for system in () if data is None else data.systems:
        parents = {system.path, *system.path.parents}
        frames[next(path for path in paths if path in parents)] += system.nframes
    for (_, path), size in zip(found, sizes, strict=True):
        if frames[path] != size:
            raise DataError(f"{path}: {frames[path]} frames, but model_devi.out has {size} rows; "
                            "explore again")  # fmt: skip
    return Explored(
        data,
        [name for (name, _), size in zip(found, sizes, strict=True) for _ in range(size)],
        [k for size in sizes for k in range(size)],
        {
            column: np.concatenate([np.zeros(0), *(getattr(d, column) for d in deviations)])
            for column in Deviation._fields
        },
    )


def _trajectories(folders: Sequence[Path], iteration: int) -> list[tuple[str, Path]]:
    """Names and folders; explorations that share names get the number of the folder."""
    found = []
    for number, folder in enumerate(folders):
        document = read_json(folder / "explore.json")
        prefix = f"iter-{document.get('iteration', iteration):06d}"
        found += [(prefix, number, t["name"], folder / "trajectories" / t["name"])
                  for t in document["trajectories"]]  # fmt: skip
    twice = Counter((prefix, name) for prefix, _, name, _ in found)
    return [
        (f"{prefix}/{name}" if twice[prefix, name] == 1 else f"{prefix}/{number}/{name}", path)
        for prefix, number, name, path in found
    ]


def read_labelled(folders: Sequence[Path], type_map: Sequence[str]) -> Dataset | None:
    """Open labelled data, as if one; None if there are none. Empty folders are skipped.

    Elements outside `type_map` are of no interest, but get a number behind its end.
    """
    from dpa_core.data import open_dataset

    paths = [path for path in folders if holds_frames(path)]
    if not paths:
        return None
    types = list(type_map)
    for path in paths:
        types += [e for e in open_dataset([path]).type_map if e not in types]
    return open_dataset(paths, types)
