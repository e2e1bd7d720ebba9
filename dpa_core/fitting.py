"""The fitting net `ener`: descriptor of an atom -> its energy."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpa_core.config import FittingConfig
from dpa_core.descriptor import apply_by_type
from dpa_core.embedding import ResidualNet, activation_of


class EnergyFitting(nn.Module):
    """One net for all types (`mixed_types`) or one per type.

    Input order is [descriptor | fparam | aparam], the parameters standardised. The last
    `dim_type` numbers of the descriptor are the type's own; they belong to an atom in vacuum.
    """

    bias_atom_e: Tensor
    fparam_avg: Tensor
    fparam_inv_std: Tensor
    aparam_avg: Tensor
    aparam_inv_std: Tensor

    def __init__(
        self,
        config: FittingConfig,
        ntypes: int,
        dim_descriptor: int,
        mixed_types: bool,
        generator: torch.Generator,
        dim_type: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        self.dtype = getattr(torch, config.precision)
        self.mixed_types = mixed_types
        tensorflow = config.convention == "tensorflow"
        # DeePMD (PT) sets the type's numbers to zero as well, TF does not.
        self.vacuum_width = dim_descriptor - (dim_type if tensorflow else 0)
        width = dim_descriptor + config.numb_fparam + config.numb_aparam
        self.nets = nn.ModuleList(
            ResidualNet(
                width, config.neuron, activation_of(config), config.resnet_dt, generator,
                linear_out=1, equal_skips=tensorflow,
            )
            for _ in range(1 if mixed_types else ntypes)
        )  # fmt: skip
        self.to(self.dtype)
        # Historic per-type energies inside the net; zero unless a file brought them.
        self.register_buffer("bias_atom_e", torch.zeros(ntypes, dtype=torch.float64))
        for name, size in (("fparam", config.numb_fparam), ("aparam", config.numb_aparam)):
            self.register_buffer(f"{name}_avg", torch.zeros(size, dtype=torch.float64))
            self.register_buffer(f"{name}_inv_std", torch.ones(size, dtype=torch.float64))

    def forward(
        self, d: Tensor, atype: Tensor, fparam: Tensor | None, aparam: Tensor | None
    ) -> Tensor:
        """Atomic energies (N,) in float64 without the model's `out_bias`.

        Parameters
        ----------
        d
            (N, dim_descriptor).
        atype
            (N,), no virtual types.
        fparam, aparam
            (N, numb_fparam) of each atom's frame, (N, numb_aparam).
        """
        parameters = self.extra_inputs(d, fparam, aparam)
        energy = self._net(torch.cat([d, *parameters], -1), atype)
        vacuum = self._vacuum_types(d.device)
        if vacuum is not None:
            # DeePMD: a non-null atom_ener subtracts the net's answer to D = 0.
            nothing = torch.zeros_like(d[:, : self.vacuum_width])
            kept = d[:, self.vacuum_width :]
            zero = self._net(torch.cat([nothing, kept, *parameters], -1), atype)
            energy = energy - torch.where(vacuum[atype], zero, torch.zeros_like(zero))
        return energy.double() + self.bias_atom_e[atype]

    def _net(self, x: Tensor, atype: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if self.mixed_types:
            return self.nets[0](x).squeeze(-1)
        return apply_by_type(self.nets, x, atype).squeeze(-1)

    def extra_inputs(self, d: Tensor, fparam: Tensor | None, aparam: Tensor | None) -> list[Tensor]:
        """Standardised frame and atom parameters in the precision of `d`, those that it has."""
        parameters = []
        if self.config.numb_fparam and fparam is not None:
            parameters.append((fparam - self.fparam_avg) * self.fparam_inv_std)
        if self.config.numb_aparam and aparam is not None:
            parameters.append((aparam - self.aparam_avg) * self.aparam_inv_std)
        return [p.to(d.dtype) for p in parameters]

    def _vacuum_types(self, device: torch.device) -> Tensor | None:
        given = self.config.atom_ener
        if given is None or all(e is None for e in given):
            return None
        # With one net for all types DeePMD subtracts for every type as soon as one is given.
        flags = [self.mixed_types or e is not None for e in given]
        return torch.tensor(flags, device=device)
