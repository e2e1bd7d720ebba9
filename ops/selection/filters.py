"""Which explored structures make sense at all: distances, shape of the cell, own functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat

from dpa_core.config import Config
from dpa_core.errors import ConfigError
from ops.filters import Filters, first_failed

if TYPE_CHECKING:
    from dpa_core.frames import Frame

Reference = Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]


class SelectFilters(Config):
    """What an explored frame must fulfil; the first unmet filter, in this order, is counted."""

    min_distance: PositiveFloat | None = None
    """Å. Smallest distance between two atoms."""
    min_distance_covalent: PositiveFloat | None = 0.5
    """Smallest distance as a fraction of the sum of the two covalent radii."""
    max_skew: Annotated[float, Field(gt=0, le=90)] | None = None
    """Degrees. Largest angle between a cell vector and the normal of the other two: 0 for a
    right-angled cell, 35.3 for the primitive cells of fcc and bcc."""
    max_length_ratio: Annotated[float, Field(ge=1)] | None = None
    """Longest cell vector over the shortest."""
    functions: tuple[Reference, ...] = ()
    """Functions of your own as "module:function": f(frame, elements) -> bool, True to keep. The
    module must be importable where the step runs: installed, or on PYTHONPATH."""


def skew(box: NDArray[np.float64]) -> float:
    """Largest angle, in degrees, between a cell vector and the normal of the other two.

    cos = |V| / (|a| |b × c|); a box (3, 3) has lattice vectors as rows.
    """
    volume = abs(float(np.linalg.det(box)))
    area = np.linalg.norm(np.cross(np.roll(box, -1, axis=0), np.roll(box, -2, axis=0)), axis=1)
    cosine = volume / (np.linalg.norm(box, axis=1) * area)
    return float(np.degrees(np.arccos(np.clip(cosine.min(), 0.0, 1.0))))


def length_ratio(box: NDArray[np.float64]) -> float:
    """Return the longest cell vector over the shortest."""
    lengths = np.linalg.norm(box, axis=1)
    return float(lengths.max() / lengths.min())


class FrameFilter:
    """The filters, ready to use.

    Parameters
    ----------
    settings
        What to check.

    Raises
    ------
    ConfigError
        A function of the user's cannot be imported.
    """

    def __init__(self, settings: SelectFilters) -> None:
        self._settings = settings
        self._distance = Filters(
            require=(),
            min_distance=settings.min_distance,
            min_distance_covalent=settings.min_distance_covalent,
        )
        self._functions = {name: _load(name) for name in settings.functions}

    def reason(self, frame: Frame, elements: list[str], where: str) -> str | None:
        """Return the first filter that a frame does not pass, or None.

        Parameters
        ----------
        frame, elements
            The structure and the element of every atom.
        where
            Name of the frame, for messages.

        Raises
        ------
        ConfigError
            A function of the user's raises or returns no bool.
        """
        if first_failed(frame, elements, self._distance):
            return "distance"
        limit = self._settings
        if frame.box is not None:
            if limit.max_skew is not None and skew(frame.box) > limit.max_skew:
                return "skew"
            ratio = limit.max_length_ratio
            if ratio is not None and length_ratio(frame.box) > ratio:
                return "length"
        for name, function in self._functions.items():
            if not _ask(function, name, frame, elements, where):
                return name
        return None


def _load(name: str) -> Callable[..., object]:
    from ops.catalog import load_reference

    where = f"select.filters.functions: {name!r}"
    hint = "it must be importable where the step runs: install it or add its folder to PYTHONPATH"
    try:
        function = load_reference(name)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}; {hint}") from error
    except Exception as error:  # the user's module may raise anything
        raise ConfigError(
            f"{where}: importing it raised {type(error).__name__}: {error}"
        ) from error
    if not callable(function):
        raise ConfigError(f"{where} is a {type(function).__name__}, a function is needed")
    return function


def _ask(
    function: Callable[..., object], name: str, frame: Frame, elements: list[str], where: str
) -> bool:
    told = f"select.filters.functions: {name!r}, called for {where},"
    try:
        answer = function(frame, list(elements))
    except Exception as error:  # the user's function may raise anything
        raise ConfigError(f"{told} raised {type(error).__name__}: {error}") from error
    if not isinstance(answer, bool | np.bool_):
        raise ConfigError(
            f"{told} returned {answer!r}; return True to keep the frame, False to leave it out"
        )
    return bool(answer)
