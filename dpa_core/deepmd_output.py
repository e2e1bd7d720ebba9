"""A `ModelConfig` -> the `model` section of a DeePMD-kit input, the way back of `deepmd_input.py`.

Every hyperparameter is written: DeePMD-kit's input schema, its PyTorch classes and its other
backends fill in different defaults.
"""

from __future__ import annotations

from typing import Any

from dpa_core.config import ModelConfig
from dpa_core.errors import ConfigError


def model_section(config: ModelConfig) -> dict[str, Any]:
    """Return the `model` section of a DeePMD-kit input, PyTorch backend.

    Parameters
    ----------
    config
        The model; `sel` may still be "auto".

    Returns
    -------
    dict
        Plain JSON values. DeePMD-kit stores the same as `model_params` in its checkpoints.

    Raises
    ------
    ConfigError
        DeePMD-kit has no such model: several heads, or TensorFlow's numerical conventions.
    """
    if config.heads > 1:
        raise ConfigError(
            f"heads is {config.heads}: DeePMD-kit has no model with several fitting nets; "
            "write each head by itself, MODEL#0, MODEL#1, ..."
        )
    plain = config.model_dump(mode="json")
    for part in ("descriptor", "fitting_net"):
        convention = plain[part].pop("convention", "pytorch")
        if convention != "pytorch":
            raise ConfigError(
                f"{part}.convention is {convention!r}: DeePMD-kit's PyTorch backend computes such "
                "a model differently; keep dpaflow's own format, or the TensorFlow graph"
            )
    preset = plain["preset_out_bias"]
    section = {
        "type_map": plain["type_map"],
        "descriptor": _descriptor(config, plain["descriptor"]),
        "fitting_net": _given(plain["fitting_net"]),
        "data_stat_nbatch": plain["data_stat_nbatch"],
        "data_stat_protect": plain["data_stat_protect"],
        "pair_exclude_types": plain["pair_exclude_types"],
        "atom_exclude_types": plain["atom_exclude_types"],
    }
    if preset:
        section["preset_out_bias"] = {"energy": [preset.get(e) for e in plain["type_map"]]}
    return section


def _descriptor(config: ModelConfig, plain: dict[str, Any]) -> dict[str, Any]:
    if config.descriptor.type == "dpa1":
        # `lmax` stays out: 1 is what it means when left out, and older versions refuse the key.
        plain["attn_mask"] = False
    return _given(plain)


def _given(section: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is None: DeePMD says the same by leaving the key out."""
    return {key: value for key, value in section.items() if value is not None}
