"""Settings of a selection."""

from __future__ import annotations

from typing import Literal

import pydantic
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from dpa_core.config import Config
from ops.selection.filters import SelectFilters
from ops.selection.levels import AdaptiveLevel


class SelectSettings(Config):
    """How one stage selects; `lo`, `hi` and `max_candidates` are the usual ones to give."""

    method: Literal["committee", "random"] = "committee"
    """committee: by trust levels; random: uniformly over all frames that pass the filters, for
    comparison."""
    criterion: Literal["max_devi_f", "avg_devi_f", "max_devi_v", "avg_devi_v", "devi_e"] = (
        "max_devi_f"
    )
    """Column of model_devi.out that the trust levels are for: eV/Å for forces (a plain number
    where the explorer's `relative` is set), eV for virials and energies per atom."""
    lo: NonNegativeFloat | None = None
    """Lower trust level: frames below are accurate. Left out if `adaptive` is given."""
    hi: PositiveFloat | None = None
    """Upper trust level: frames at or above have failed."""
    adaptive: AdaptiveLevel | None = None
    """Let the lower level follow the data, instead of `lo`."""
    filters: SelectFilters = SelectFilters()
    """What a frame must fulfil in any case."""
    max_candidates: PositiveInt = 50
    """Largest number of frames selected in an iteration."""
    diversity: Literal["farthest", "entropy", "random", "top"] = "farthest"
    """Which candidates: those farthest from all that is covered in descriptor space, those of
    largest differential entropy, any, or those of largest deviation."""
    min_new: NonNegativeFloat = 0.001
    """Å. A candidate is left out if each of its environments is as near to a labelled or chosen
    one as if its atoms had only been displaced at random by this much. 0 leaves out equal ones."""
    bandwidth: PositiveFloat = 0.1
    """Å. Width of the kernel of `entropy`, in the same measure."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> SelectSettings:
        if self.method == "random":
            return self
        if self.hi is None:
            raise ValueError(
                "give the trust levels lo and hi, e.g. lo slightly above the force error on the "
                "training data and hi three times as large"
            )
        if (self.lo is None) == (self.adaptive is None):
            raise ValueError("give either lo or adaptive (with the other null)")
        if self.lo is not None and self.lo >= self.hi:
            raise ValueError(f"lo ({self.lo}) must be below hi ({self.hi})")
        return self
