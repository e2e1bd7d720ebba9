"""Engines that label structures: one small module each, chosen by `type` in the settings.

    ase      any ASE calculator, in this process
    cp2k     input from a template, structure put into its &SUBSYS
    vasp     INCAR, KPOINTS, POTCAR by element, POSCAR
    abacus   INPUT, KPT, STRU
    qe       input of pw.x
    manual   inputs of one of the above for a machine that is out of reach
    pool     labels that a data set already has, revealed when asked for

`ops.labelers.base` says what each of them can do.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ops.labelers.abacus import AbacusLabeler
from ops.labelers.ase import AseLabeler
from ops.labelers.base import BaseLabeler, LabelFailed, Structure
from ops.labelers.cp2k import Cp2kLabeler
from ops.labelers.manual import ManualLabeler
from ops.labelers.pool import PoolLabeler
from ops.labelers.qe import QeLabeler
from ops.labelers.vasp import VaspLabeler

Labeler = Annotated[
    AseLabeler
    | Cp2kLabeler
    | VaspLabeler
    | AbacusLabeler
    | QeLabeler
    | ManualLabeler
    | PoolLabeler,
    Field(discriminator="type"),
]
"""Settings of any labeler."""

__all__ = ["BaseLabeler", "LabelFailed", "Labeler", "Structure", "check_labeler"]


def check_labeler(labeler: BaseLabeler) -> list[str]:
    """Return what is wrong with the settings of a labeler; nothing expensive is run.

    Lines that begin with "warning: " may be all right where the labels are computed: a
    command that is not found on this machine, for example.
    """
    return labeler.check()
