"""Driver of dpdata: `dpdata.System(...).predict(driver="dpaflow", model="model.safetensors")`.

dpdata finds this module by its entry point (group `dpdata.plugins`); nothing here imports it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from dpdata.driver import Driver
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dpa_core.model import Potential


@Driver.register("dpaflow")
class DPAFlowDriver(Driver):
    """Label systems of dpdata with a model.

    Parameters
    ----------
    model
        A model, or the path of its file in any readable format.
    device
        Where the model runs, e.g. "cuda"; None leaves it where it is.

    Raises
    ------
    ModelFileError
        If the file cannot be read.
    """

    def __init__(self, model: str | Path | Potential, device: str | None = None) -> None:
        # not above: whoever imports dpdata would wait for torch
        from dpa_core.interchange.files import load_model

        self.model = load_model(model) if isinstance(model, str | Path) else model
        if device is not None:
            self.model.to(device)

    def label(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return a system's data with energies (eV), forces (eV/Å) and virials (eV).

        The virial is -dE/dstrain, also without periodicity, as from DeePMD-kit's driver.

        Raises
        ------
        ConfigError
            The system holds an element that the model does not know.
        """
        coord = np.asarray(data["coords"], np.float64)
        box = None if data.get("nopbc", False) else np.asarray(data["cells"], np.float64)
        found = self.model.evaluate(coord, box, self._types(data))
        return {
            **data,
            "energies": found.energy.reshape(len(coord)),
            "forces": found.force.reshape(coord.shape),
            "virials": found.virial.reshape(len(coord), 3, 3),
        }

    def _types(self, data: dict[str, Any]) -> NDArray[np.int64]:
        """Types of the model for the atoms of a system, which has a type map of its own."""
        from dpa_core.errors import ConfigError

        names, types = list(data["atom_names"]), np.asarray(data["atom_types"])
        known = {name: t for t, name in enumerate(self.model.type_map)}
        unknown = sorted({names[t] for t in types} - set(known))
        if unknown:
            raise ConfigError(
                f"the system holds {', '.join(unknown)}, which the model does not know; its "
                f"type_map is {list(self.model.type_map)}"
            )
        return np.array([known.get(name, -1) for name in names], np.int64)[types]
