"""The C structures of `source/job.hpp`, field by field."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_double, c_int64, c_void_p


class LayerArgs(ctypes.Structure):
    """One layer of a net."""

    _fields_ = (
        *((name, c_int64) for name in ("input", "output", "copies")),
        *((name, c_void_p) for name in ("weight", "bias", "idt")),
        *((name, c_void_p) for name in ("g_weight", "g_bias", "g_idt")),
    )


class NetArgs(ctypes.Structure):
    """A chain of layers."""

    _fields_ = (("layers", c_int64), ("layer", POINTER(LayerArgs)))


ATTENTION = ("in_weight", "in_bias", "out_weight", "out_bias", "norm_weight", "norm_bias")


class AttentionArgs(ctypes.Structure):
    """One layer of attention."""

    _fields_ = (
        *((name, c_void_p) for name in ATTENTION),
        *((f"g_{name}", c_void_p) for name in ATTENTION),
    )


class JobArgs(ctypes.Structure):
    """One call: neighbourhoods, weights, and where results go."""

    _fields_ = (
        *(
            (name, c_int64)
            for name in (
                "natoms",
                "nframes",
                "slots",
                "ntypes",
                "heads",
                "active",
                "threads",
                "group_bytes",
            )
        ),
        ("frozen", c_int64),
        *((name, c_void_p) for name in ("order", "atype", "pad_type", "frame", "index")),
        *((name, c_void_p) for name in ("mask", "interacts", "coord", "box", "shift")),
        *((name, c_void_p) for name in ("energy_bar", "force_bar", "virial_bar")),
        *((name, c_double) for name in ("rcut", "rcut_smth", "protection")),
        *((name, c_int64) for name in ("nnei", "width", "axis")),
        *((name, c_void_p) for name in ("davg", "dstd", "allowed", "sel")),
        *((name, c_int64) for name in ("nets", "first_width", "first_rows")),
        *((name, c_void_p) for name in ("net_of", "row_of")),
        *((name, c_void_p) for name in ("first_weight", "first_bias")),
        *((name, c_void_p) for name in ("g_first_weight", "g_first_bias")),
        ("embedding", POINTER(NetArgs)),
        ("table_bins", c_int64),
        *((name, c_double) for name in ("table_lower", "table_stride")),
        ("table", c_void_p),
        ("factor_rows", c_int64),
        ("factor", c_void_p),
        ("g_factor", c_void_p),
        *((name, c_int64) for name in ("attention_layers", "hidden", "smooth", "gated")),
        *((name, c_double) for name in ("scale", "epsilon")),
        ("attention", POINTER(AttentionArgs)),
        ("fitting_nets", c_int64),
        *((name, c_void_p) for name in ("which", "first_row")),
        ("fitting", POINTER(NetArgs)),
        ("first", c_void_p),
        ("g_first", c_void_p),
        *((name, c_void_p) for name in ("energy", "force", "virial", "atom_virial", "crowded")),
    )
