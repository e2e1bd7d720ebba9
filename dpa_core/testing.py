"""The physics every model must obey, as mixins for pytest classes.

    class TestMyModel(PhysicsSuite):
        def make_model(self) -> Potential:
            return build_model(config, seed=3)

`PhysicsSuite` is all of it. A model that by definition breaks some law takes the mixins it
obeys instead: smooth cutoffs do not hold with non-smooth attention; permutation, additivity
and smooth cutoffs do not hold for DPA-1 in concat mode with davg != 0, whose empty slots take
the type of the frame's first atom.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from dpa_core.batch import make_batch
from dpa_core.derivatives import loss_gradient, neighbor_vectors, predict
from dpa_core.frames import Frame, Prediction
from dpa_core.model import Evaluation, Potential
from dpa_core.neighbors import neighbor_table

Array = NDArray[np.float64]

_CELL = np.array([[4.6, 0.0, 0.0], [0.3, 4.4, 0.0], [-0.2, 0.1, 4.2]])
_CELL_COORD = np.array(
    [[0.1, 0.2, 0.3], [1.1, 0.4, 0.2], [-0.3, 1.2, 0.5], [2.4, 2.2, 0.7], [0.6, 2.9, 2.1]]
)
_MOLECULE = np.array([[0.0, 0.1, 0.0], [0.9, 0.3, 0.2], [-0.2, 0.95, 0.3], [2.1, 1.7, 0.8]])
_SKEWED = np.array([[3.1, 0.2, -0.1], [1.4, 2.9, 0.3], [0.9, -1.1, 3.3]])


def structures(ntypes: int) -> dict[str, Frame]:
    """Small structures that have caught real bugs; types are 0 ... ntypes - 1."""

    def frame(coord: ArrayLike, types: Sequence[int], box: ArrayLike | None) -> Frame:
        return Frame(
            np.array(coord, np.float64),
            np.array(types, np.int64) % ntypes,
            None if box is None else np.array(box, np.float64),
        )

    return {
        "molecule without box": frame(_MOLECULE, [1, 0, 1, 2], None),
        "cell": frame(_CELL_COORD, [0, 1, 1, 2, 0], _CELL),
        "left-handed cell": frame(_CELL_COORD, [0, 1, 1, 2, 0], _CELL[[1, 0, 2]]),
        "skewed cell, rcut over several images": frame(
            [[0.2, -0.1, 0.4], [3.9, 0.6, 1.3]], [2, 0], _SKEWED
        ),
        "slab": frame(_CELL_COORD[:3], [2, 2, 1], _CELL * [[1.0], [1.0], [6.0]]),
        "one atom, rcut beyond the cell": frame(
            [[0.3, 0.2, 0.1]], [2], [[0.1, 1.9, 1.8], [1.8, 0.1, 1.9], [1.9, 1.8, 0.1]]
        ),
        "one atom without box": frame([[0.3, 0.2, 0.1]], [1], None),
    }


class _Suite:
    """What the mixins share: the model, the structures and the tolerances."""

    exact: float = 1e-10
    """Relative tolerance of identities."""
    difference: float = 1e-6
    """Relative tolerance of finite differences."""
    step: float = 1e-4
    """Å. Step of finite differences."""

    def make_model(self) -> Potential:
        """Return the model under test; at least two types, deterministic."""
        raise NotImplementedError

    def frames(self, model: Potential) -> Iterator[tuple[str, Frame]]:
        """Structures whose neighbours all fit into `sel`."""
        for name, frame in structures(len(model.type_map)).items():
            dropped = neighbor_table(frame, model.spec).dropped
            assert dropped == 0, f"{name}: sel of the test's model is too small"
            yield name, frame

    def close(self, got: ArrayLike, expected: ArrayLike, rtol: float, what: str) -> None:
        """Compare relative to the largest number of the pair, or to 1."""
        got, expected = np.asarray(got), np.asarray(expected)
        scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
        np.testing.assert_allclose(got, expected, rtol=0, atol=rtol * scale, err_msg=what)

    def same(self, got: Evaluation, expected: Evaluation, what: str) -> None:
        """Equal energy, forces, virial and atomic energies."""
        for key in ("energy", "atom_energy", "force", "virial"):
            self.close(getattr(got, key), getattr(expected, key), self.exact, f"{what}: {key}")


def evaluate(model: Potential, frame: Frame, atom_virial: bool = False) -> Evaluation:
    """Evaluate one frame."""
    box = None if frame.box is None else frame.box[None]
    return model.evaluate(frame.coord[None], box, frame.atype, atom_virial=atom_virial)


def transformed(frame: Frame, matrix: Array) -> Frame:
    """Apply r -> r @ matrix to atoms and cell."""
    box = None if frame.box is None else frame.box @ matrix
    return frame._replace(coord=frame.coord @ matrix, box=box)


def orthogonal(seed: int, determinant: int) -> Array:
    """Random rotation (determinant 1) or rotoreflection (-1)."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    if np.sign(np.linalg.det(q)) != determinant:
        q[:, 0] = -q[:, 0]
    return q


class Symmetries(_Suite):
    """Invariance under motions of space and choices of the cell."""

    def test_translation(self) -> None:
        """Shifting all atoms changes nothing."""
        model = self.make_model()
        for name, frame in self.frames(model):
            moved = frame._replace(coord=frame.coord + np.array([0.7, -1.3, 2.9]))
            self.same(evaluate(model, moved), evaluate(model, frame), name)

    def test_rotation_and_reflection(self) -> None:
        """Energies stay, forces and virial turn along, for proper and improper rotations."""
        model = self.make_model()
        for name, frame in self.frames(model):
            before = evaluate(model, frame)
            for determinant in (1, -1):
                q = orthogonal(5, determinant)
                after = evaluate(model, transformed(frame, q))
                expected = before._replace(force=before.force @ q, virial=q.T @ before.virial @ q)
                self.same(after, expected, f"{name}, determinant {determinant}")

    def test_wrapping(self) -> None:
        """Moving atoms by lattice vectors changes nothing."""
        model = self.make_model()
        for name, frame in self.frames(model):
            if frame.box is not None:
                k = np.arange(3 * len(frame.coord)).reshape(-1, 3) % 5 - 2
                moved = frame._replace(coord=frame.coord + k @ frame.box)
                self.same(evaluate(model, moved), evaluate(model, frame), name)

    def test_choice_of_cell(self) -> None:
        """Another basis of the same lattice, of either handedness, changes nothing."""
        model = self.make_model()
        for name, frame in self.frames(model):
            if frame.box is not None:
                for basis in (
                    [[0, 1, 0], [1, 0, 0], [0, 0, 1]],
                    [[1, 0, 0], [1, 1, 0], [0, 0, -1]],
                ):
                    other = frame._replace(box=np.array(basis, np.float64) @ frame.box)
                    self.same(evaluate(model, other), evaluate(model, frame), name)


class Bookkeeping(_Suite):
    """Sums, batches and inputs."""

    def test_batch_is_single(self) -> None:
        """One ragged batch of unlike frames gives what each frame gives alone."""
        model = self.make_model()
        frames = [frame for _, frame in self.frames(model)]
        for order in (frames, frames[::-1]):
            together = predict(model, make_batch(order, model.spec))
            alone = [evaluate(model, frame) for frame in order]
            for key in ("energy", "force", "virial", "atom_energy"):
                expected = np.concatenate([getattr(e, key).ravel() for e in alone])
                got = getattr(together, key).detach().numpy().ravel()
                self.close(got, expected, self.exact, key)

    def test_sums(self) -> None:
        """Atomic energies and virials add up; forces and torques on a molecule cancel."""
        model = self.make_model()
        for name, frame in self.frames(model):
            result = evaluate(model, frame, atom_virial=True)
            assert result.atom_virial is not None
            self.close(result.atom_energy.sum(1), result.energy, self.exact, name)
            self.close(result.atom_virial.sum(1), result.virial, self.exact, name)
            self.close(result.force.sum(1), np.zeros((1, 3)), self.exact, name)
            self.close(result.virial, result.virial.swapaxes(1, 2), self.exact, name)
            if frame.box is None:
                torque = np.cross(frame.coord, result.force[0]).sum(0)
                self.close(torque, np.zeros(3), self.exact, name)

    def test_one_atom(self) -> None:
        """A lone atom has an energy, no force and no virial; in a lattice no force."""
        model = self.make_model()
        frames = dict(self.frames(model))
        free = evaluate(model, frames["one atom without box"])
        assert np.isfinite(free.energy).all()
        assert not free.force.any()
        assert not free.virial.any()
        lattice = evaluate(model, frames["one atom, rcut beyond the cell"])
        self.close(lattice.force, np.zeros((1, 1, 3)), self.exact, "force in a Bravais lattice")
        assert np.abs(lattice.virial).max() > self.exact

    def test_forces_are_not_trivial(self) -> None:
        """The other tests would pass for a model that always answers zero."""
        model = self.make_model()
        frame = dict(self.frames(model))["cell"]
        assert np.abs(evaluate(model, frame).force).max() > 1e-3

    def test_inputs_are_not_changed(self) -> None:
        """Evaluation leaves coordinates, cell and types alone."""
        model = self.make_model()
        for name, frame in self.frames(model):
            kept = [None if x is None else np.array(x) for x in frame[:3]]
            evaluate(model, frame)
            for before, after in zip(kept, frame[:3], strict=True):
                np.testing.assert_array_equal(before, after, err_msg=name)


class FiniteDifferences(_Suite):
    """First and second derivatives against central differences."""

    def test_force(self) -> None:
        """F = -dE/dr."""
        model = self.make_model()
        for name, frame in self.frames(model):
            natoms = len(frame.coord)
            offsets = self.step * np.eye(3 * natoms).reshape(-1, natoms, 3)
            numeric = -self._slope(model, frame, offsets, np.zeros((3 * natoms, 3, 3)))
            self.close(evaluate(model, frame).force.ravel(), numeric, self.difference, name)

    def test_virial(self) -> None:
        """W = -dE/dstrain, r -> r (1 + strain), with and without a cell."""
        model = self.make_model()
        for name, frame in self.frames(model):
            strains = self.step * np.eye(9).reshape(9, 3, 3)
            numeric = -self._slope(model, frame, np.zeros((9, *frame.coord.shape)), strains)
            self.close(evaluate(model, frame).virial.ravel(), numeric, self.difference, name)

    def _slope(self, model: Potential, frame: Frame, offsets: Array, strains: Array) -> Array:
        """Central differences of the energy for every offset of the atoms and strain."""
        energies = []
        for sign in (1, -1):
            deform = np.eye(3) + sign * strains
            coord = (frame.coord + sign * offsets) @ deform
            box = None if frame.box is None else frame.box @ deform
            energies.append(model.evaluate(coord, box, frame.atype).energy)
        return (energies[0] - energies[1]) / (2 * self.step)

    def test_second_order_in_parameters(self) -> None:
        """What training needs: d(energy + force·u + virial·v)/dparameter, every tensor."""
        model = self.make_model()
        frames = dict(self.frames(model))
        batch = make_batch([frames["cell"], frames["molecule without box"]], model.spec)
        rng = np.random.default_rng(3)
        u = torch.from_numpy(rng.normal(size=(len(batch.atype), 3)))
        v = torch.from_numpy(rng.normal(size=(2, 3, 3)))

        def scalar(p: Prediction) -> torch.Tensor:
            return p.energy.sum() + (p.force * u).sum() + (p.virial * v).sum()

        parameters = [p for p in model.parameters() if p.requires_grad]
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        loss_gradient(model, batch, lambda p: (scalar(p), None))
        for parameter in parameters:
            gradient = parameter.grad
            assert gradient is not None
            k = int(gradient.abs().argmax())
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.view(-1)[k] += sign * self.step
                values.append(float(scalar(predict(model, batch))))
                with torch.no_grad():
                    parameter.view(-1)[k] -= sign * self.step
            numeric = (values[0] - values[1]) / (2 * self.step)
            self.close(float(gradient.view(-1)[k]), numeric, 10 * self.difference, "second order")

    def test_second_order_in_positions(self) -> None:
        """Both derivatives with respect to the neighbour vectors (torch's gradgradcheck)."""
        model = self.make_model()
        if self.exact > 1e-9:
            return  # finite differences of float32 networks prove nothing here
        frame = dict(self.frames(model))["molecule without box"]
        batch = make_batch(
            [frame._replace(coord=frame.coord[:3], atype=frame.atype[:3])], model.spec
        )
        env = model.environment(batch)

        def energy(vectors: torch.Tensor) -> torch.Tensor:
            return model(vectors, env, batch.atype)

        vectors = neighbor_vectors(batch).detach().requires_grad_()
        assert torch.autograd.gradcheck(energy, vectors, atol=1e-6)
        assert torch.autograd.gradgradcheck(energy, vectors, atol=1e-5)


class Locality(_Suite):
    """Atoms of a type are alike, and distant atoms do not know of each other."""

    def test_permutation(self) -> None:
        """Reordering the atoms reorders the results."""
        model = self.make_model()
        for name, frame in self.frames(model):
            order = np.random.default_rng(1).permutation(len(frame.atype))[::-1]
            shuffled = frame._replace(coord=frame.coord[order], atype=frame.atype[order])
            before, after = evaluate(model, frame), evaluate(model, shuffled)
            expected = before._replace(
                force=before.force[:, order], atom_energy=before.atom_energy[:, order]
            )
            self.same(after, expected, name)

    def test_additivity(self) -> None:
        """Two molecules far apart: energies add, forces stay."""
        model = self.make_model()
        frame = dict(self.frames(model))["molecule without box"]
        swapped = frame._replace(atype=frame.atype[::-1].copy())
        pair = Frame(
            np.concatenate([frame.coord, swapped.coord + 50.0]),
            np.concatenate([frame.atype, swapped.atype]),
        )
        both, one, two = (evaluate(model, f) for f in (pair, frame, swapped))
        self.close(both.energy, one.energy + two.energy, self.exact, "energy")
        self.close(both.virial, one.virial + two.virial, self.exact, "virial")
        self.close(both.force, np.concatenate([one.force, two.force], 1), self.exact, "force")

    def test_supercell(self) -> None:
        """Twice the cell has twice the energy and virial."""
        model = self.make_model()
        for name, frame in self.frames(model):
            if frame.box is not None:
                double = Frame(
                    np.concatenate([frame.coord, frame.coord + frame.box[1]]),
                    np.tile(frame.atype, 2),
                    frame.box * [[1], [2], [1]],
                )
                one, two = evaluate(model, frame), evaluate(model, double)
                self.close(two.energy, 2 * one.energy, self.exact, name)
                self.close(two.virial, 2 * one.virial, self.exact, name)
                self.close(two.force, np.tile(one.force, (1, 2, 1)), self.exact, name)

    def test_molecule_in_a_large_box(self) -> None:
        """A cell that no neighbour reaches across is no cell."""
        model = self.make_model()
        frame = dict(self.frames(model))["molecule without box"]
        boxed = frame._replace(box=np.diag([40.0, 50.0, 60.0]))
        self.same(evaluate(model, boxed), evaluate(model, frame), "large box")

    def test_virtual_atoms(self) -> None:
        """Atoms of type -1 have no energy, no force and no influence."""
        model = self.make_model()
        for name, frame in self.frames(model):
            padded = frame._replace(
                coord=np.concatenate([frame.coord[:1] + 0.4, frame.coord, [[0.0, 0.0, 0.0]]]),
                atype=np.concatenate([[-1], frame.atype, [-1]]),
            )
            result, expected = evaluate(model, padded), evaluate(model, frame)
            assert not result.force[:, [0, -1]].any()
            assert not result.atom_energy[:, [0, -1]].any()
            kept = result._replace(
                force=result.force[:, 1:-1], atom_energy=result.atom_energy[:, 1:-1]
            )
            self.same(kept, expected, name)


class SmoothCutoff(_Suite):
    """Energy and forces are continuous when an atom crosses the cutoff."""

    gap: float = 1e-6
    """Å. Distance to the cutoff on either side."""
    jump: float = 1e-9
    """eV, eV/Å. Largest jump allowed."""

    def test_atom_crosses_the_cutoff(self) -> None:
        """A visitor leaves a molecule and, in a cell, moves between shells."""
        model = self.make_model()
        rcut = model.config.descriptor.rcut
        molecule = dict(self.frames(model))["molecule without box"]
        for t in range(len(model.type_map)):
            sides = []
            for sign in (-1, 1):
                # Straight above atom 0, at rcut from it and beyond the reach of the rest.
                visitor = molecule.coord[0] - [0, 0, rcut + sign * self.gap]
                frame = Frame(
                    np.concatenate([molecule.coord, visitor[None]]), np.append(molecule.atype, t)
                )
                sides.append(evaluate(model, frame))
            inside, outside = sides
            for key in ("energy", "atom_energy", "force", "virial"):
                step = np.abs(getattr(inside, key) - getattr(outside, key)).max()
                assert step < self.jump, f"{key} jumps by {step:.1e} at rcut"
            assert not outside.force[:, -1].any()


class PhysicsSuite(Symmetries, Bookkeeping, FiniteDifferences, Locality, SmoothCutoff):
    """Everything that holds for a proper model."""
