"""Calls of the compiled kernels."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dpa_core.frames import Batch, Prediction
from dpa_core.kernels.arrays import Arrays, LayerArrays, arrays_of, first_of, supports
from dpa_core.kernels.build import library
from dpa_core.kernels.job import ATTENTION, AttentionArgs, JobArgs, LayerArgs, NetArgs

if TYPE_CHECKING:
    from dpa_core.model import Potential

# Scratch memory of a thread: activations of a group of atoms should stay in cache.
_GROUP_BYTES = 8 << 20


def find(models: Sequence[Potential]) -> Engine | None:
    """Return the kernels for models on one descriptor, None if torch has to evaluate them.

    DPAFLOW_KERNELS=0 in the environment switches them off.
    """
    if os.environ.get("DPAFLOW_KERNELS") == "0":
        return None
    descriptor = models[0].descriptor
    fittings = [fitting for model in models for fitting in model.fittings]
    if not supports(descriptor, fittings):
        return None
    compiled = library(models[0].config.descriptor.precision)
    return None if compiled is None else Engine(compiled, models)


class Engine:
    """The kernels with the weights of some models on one descriptor.

    Parameters
    ----------
    compiled
        See `build.library`.
    models
        One; or heads of one model, which are evaluated together.
    """

    def __init__(self, compiled: ctypes.CDLL, models: Sequence[Potential]) -> None:
        self._library = compiled
        self._models = models

    def predict(self, batch: Batch, *, atom_virial: bool = False) -> list[Prediction]:
        """Energies, forces and virials of every model; see `derivatives.predict`."""
        return self._call(batch, learning=False).predict(atom_virial=atom_virial)

    def predict_uncut(self, batch: Batch) -> Prediction | None:
        """Energies, forces and virials from tables that may hold pairs beyond rcut.

        Returns
        -------
        Prediction or None
            Of the first model; None if `sel` has no room for all neighbours of an atom, so that
            some would have to be left out.
        """
        call = self._call(batch, learning=False)
        found = call.predict(atom_virial=False)[0]
        return None if call.crowded else found

    def learn(self, batch: Batch) -> tuple[Prediction, Callable[[Prediction], None]]:
        """Predict, and be ready to differentiate a loss of what was predicted.

        Returns
        -------
        prediction, differentiate
            Of the first model. `differentiate` takes the derivatives of the loss with respect
            to the prediction's numbers and adds its gradient to the `grad` of the weights.
        """
        call = self._call(batch, learning=True)
        return call.predict(atom_virial=False)[0], call.differentiate

    def _call(self, batch: Batch, *, learning: bool) -> _Call:
        with torch.set_grad_enabled(learning):
            return _Call(self._library, self._models, batch, learning=learning)


class _Call:
    """One job: its C structure, and the tensors whose memory it points to."""

    def __init__(
        self, library: ctypes.CDLL, models: Sequence[Potential], batch: Batch, *, learning: bool
    ) -> None:
        self.library, self.models, self.batch = library, models, batch
        self.learning, self.crowded = learning, False
        self.keep: list[Any] = []
        self.gradients: list[tuple[Tensor, Tensor]] = []
        model = self.models[0]
        self.job = JobArgs()
        self.heads = len(self.models)
        self.fitting_of = torch.zeros_like(batch.atype)
        if batch.head is not None:  # which of a model's own fitting nets an atom passes
            self.fitting_of = batch.head[batch.frame]
        fittings = [f for m in self.models for f in m.fittings]
        self._set_sizes(batch)
        self._set_atoms(batch)
        self._set_weights(arrays_of(model.descriptor, fittings))
        self._set_first(batch)
        descriptor = model.descriptor
        self.point(davg=descriptor.davg, dstd=descriptor.dstd, allowed=descriptor.allowed)
        if not descriptor.mixed_types:
            self.point(sel=torch.tensor(descriptor.sel))

    def point(self, **tensors: Tensor) -> None:
        """Let fields of the job point to tensors, which are kept alive."""
        for name, tensor in tensors.items():
            setattr(self.job, name, self._pointer(tensor))

    @torch.no_grad()
    def predict(self, *, atom_virial: bool) -> list[Prediction]:
        """Energies, forces and virials of every model; `crowded`: `sel` has too little room."""
        batch, heads, atoms = self.batch, self.heads, len(self.batch.atype)
        energy = torch.zeros(heads, atoms, dtype=torch.float64)
        force = torch.zeros(heads, atoms, 3, dtype=torch.float64)
        virial = torch.zeros(heads, batch.nframes, 3, 3, dtype=torch.float64)
        crowded = torch.zeros(1, dtype=torch.int32)
        self.point(energy=energy, force=force, virial=virial, crowded=crowded)
        scattered = None
        if atom_virial:
            scattered = torch.zeros(heads, atoms, 3, 3, dtype=torch.float64)
            self.point(atom_virial=scattered)
        self._run(self.library.energies)
        self.crowded = bool(crowded)
        found = []
        for k in range(heads):
            own = self._biased(k, energy[k])
            total = own.new_zeros(batch.nframes).index_add(0, batch.frame, own)
            atomic = None if scattered is None else scattered[k]
            found.append(Prediction(total, own, force[k], virial[k], atomic))
        return found

    def differentiate(self, bar: Prediction) -> None:
        """Add the gradient of a loss to the `grad` of the weights; see `Engine.learn`."""
        self.point(
            energy_bar=bar.atom_energy + bar.energy[self.batch.frame],
            force_bar=bar.force, virial_bar=bar.virial,
        )  # fmt: skip
        self._run(self.library.parameters)
        others = []
        for array, gradient in self.gradients:
            if not array.is_leaf:
                others.append((array * gradient).sum())
            elif array.grad is None:
                array.grad = gradient
            else:
                array.grad += gradient
        if others:
            # A sum, because backward() with gradients imports sympy (a second of every start).
            torch.stack(others).sum().backward()

    def _run(self, function: Any) -> None:
        if function(ctypes.byref(self.job)):
            raise MemoryError("no memory is left for the compiled kernels")

    def _biased(self, k: int, energy: Tensor) -> Tensor:
        model, batch = self.models[k], self.batch
        table = torch.stack([fitting.bias_atom_e for fitting in model.fittings])
        which = self.fitting_of if len(table) > 1 else torch.zeros_like(self.fitting_of)
        return model.biased(energy + table[which, batch.atype.clamp(min=0)], batch.atype)

    def _pointer(self, tensor: Tensor) -> int:
        tensor = tensor.detach().contiguous()
        self.keep.append(tensor)
        return tensor.data_ptr()

    def _gradient(self, tensor: Tensor) -> int | None:
        if not self.learning or not tensor.requires_grad:
            return None
        gradient = torch.zeros_like(tensor, memory_format=torch.contiguous_format)
        self.gradients.append((tensor, gradient))
        return gradient.data_ptr()

    def _set_sizes(self, batch: Batch) -> None:
        job, model = self.job, self.models[0]
        descriptor, config = model.descriptor, model.config.descriptor
        (job.natoms, job.slots), job.nframes = batch.mask.shape, batch.nframes
        job.ntypes, job.heads = len(model.type_map), self.heads
        job.threads, job.group_bytes = torch.get_num_threads(), _GROUP_BYTES
        job.rcut, job.rcut_smth = descriptor.radii
        job.protection, job.nnei = config.env_protection, descriptor.nnei
        job.width, job.axis = config.neuron[-1], config.axis_neuron
        if config.type == "dpa1":
            job.smooth = config.smooth_type_embedding
            job.attention_layers, job.hidden = config.attn_layer, config.attn
            job.gated, job.epsilon = config.attn_dotr, config.ln_eps
            for layer in list(descriptor.attention.layers)[:1]:  # type: ignore[union-attr,arg-type]
                job.scale = layer.scale

    def _set_atoms(self, batch: Batch) -> None:
        model = self.models[0]
        atype, pad_type = batch.centre_types()
        nets = len(model.fitting.nets)
        own = self.fitting_of * nets + (atype if nets > 1 else 0)
        per_model = nets * len(model.fittings)
        order = torch.nonzero(~model.silent_atoms(batch.atype)).squeeze(1)
        order = order[torch.argsort(own[order], stable=True)]  # one fitting net after the other
        self.job.active = len(order)
        self.point(
            order=order, atype=atype, pad_type=pad_type, frame=batch.frame, index=batch.index,
            mask=batch.mask, interacts=model.pair_allowed,
            coord=batch.coord, box=batch.box, shift=batch.shift,
            which=torch.stack([own + k * per_model for k in range(self.heads)]),
        )  # fmt: skip

    def _set_weights(self, arrays: Arrays) -> None:
        job = self.job
        self.point(net_of=arrays.net_of, row_of=arrays.row_of)
        if arrays.first_weight is not None and arrays.first_bias is not None:
            job.nets, job.first_width = arrays.first_weight.shape
            job.first_rows = len(arrays.first_bias)
        if arrays.tables is not None:
            table = arrays.tables
            job.table_bins, job.table_stride = table.table.shape[1], table.stride
            job.table_lower = table.lower
            self.point(table=table.table)
        for name in ("first_weight", "first_bias", "factor"):
            tensor = getattr(arrays, name)
            if tensor is not None:
                self.point(**{name: tensor})
                setattr(job, f"g_{name}", self._gradient(tensor))
        job.factor_rows = 0 if arrays.factor is None else len(arrays.factor)
        layers = (AttentionArgs * max(len(arrays.attention), 1))()
        for layer, weights in zip(layers, arrays.attention, strict=False):
            for name in ATTENTION:
                setattr(layer, name, self._pointer(weights[name]))
                setattr(layer, f"g_{name}", self._gradient(weights[name]))
        job.attention = layers
        job.embedding = self._nets(arrays.embedding)
        job.frozen = not self.gradients  # those of the fitting nets come last
        job.fitting = self._nets(arrays.fitting)
        job.fitting_nets = len(arrays.fitting)
        self.keep.append(layers)

    def _nets(self, nets: list[list[LayerArrays]]) -> Any:
        made = (NetArgs * len(nets))()
        for target, layers in zip(made, nets, strict=True):
            chain = (LayerArgs * max(len(layers), 1))()
            for k, layer in enumerate(layers):
                chain[k].input, chain[k].output = layer.inputs, layer.weight.shape[1]
                chain[k].copies = layer.copies
                for name in ("weight", "bias", "idt"):
                    tensor = getattr(layer, name)
                    if tensor is not None:
                        setattr(chain[k], name, self._pointer(tensor))
                        setattr(chain[k], f"g_{name}", self._gradient(tensor))
            target.layers, target.layer = len(layers), chain
            self.keep.append(chain)
        self.keep.append(made)
        return made

    def _set_first(self, batch: Batch) -> None:
        """Give what the first layers of the fitting nets add: rows, and which an atom takes.

        A row for each net and type, where that is all it depends on. In learning every atom
        has its own, so that threads do not add up gradients in one.
        """
        model = self.models[0]
        atype, ntypes = batch.atype.clamp(min=0), len(model.type_map)
        _, fparam, aparam, _ = model.inputs_of(batch, torch.arange(len(atype)))
        own = self.learning or fparam is not None or aparam is not None
        types = atype if own else torch.arange(ntypes)
        rows = torch.stack(
            [
                first_of(m.descriptor, fitting, types, fparam, aparam)
                for m in self.models
                for fitting in m.fittings
            ]
        )
        row = torch.arange(len(types)) if own else atype
        each = len(model.fittings)
        row = torch.stack(
            [(k * each + self.fitting_of) * len(types) + row for k in range(self.heads)]
        )
        self.point(first=rows, first_row=row)
        self.job.g_first = self._gradient(rows)
