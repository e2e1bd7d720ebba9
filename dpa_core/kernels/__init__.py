"""Compiled evaluation of models on CPU: energies, gradients, and gradients of a loss.

`find` says whether there is one for a model; where there is none, torch evaluates it.
"""

from dpa_core.kernels.engine import Engine, find

__all__ = ["Engine", "find"]
