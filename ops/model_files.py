"""Convert, compress, export and describe model files of all formats."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dpa_core.errors import ConfigError, ModelFileError
from ops.deepmd_kit import FROZEN, convert_backend, find_dp, how_to_install
from ops.storage import is_url

if TYPE_CHECKING:
    from dpa_core.compress import CompressionReport
    from dpa_core.model import Potential

DIFFERENCE, FROZEN_DIFFERENCE = 1e-6, 1e-3
"""eV/atom and eV/Å. A copy that differs more is not the same model. DeePMD-kit's TensorFlow backend
has formulas of its own, so that a model converted to it may be a little off."""
logger = logging.getLogger(__name__)
SPACING, JITTER, MAX_ATOMS = 3.0, 0.4, 64
COMPRESSED_DIFFERENCE = (1e-5, 1e-4)
"""eV/atom and eV/Å. A compressed model that is further off is reported as a problem."""
MAX_FRAMES = 20


class Copy(NamedTuple):
    """A written file: it, and how far its energy (eV/atom) and forces (eV/Å) are off."""

    path: Path
    energy: float
    force: float

    def __str__(self) -> str:
        return (
            f"{self.path}: read back, energies differ by {self.energy:.1g} eV/atom, forces by "
            f"{self.force:.1g} eV/Å"
        )


class Exported(NamedTuple):
    """A frozen model, the .dp file it is made from, and its check; None if it is not made."""

    path: Path
    source: Path
    copy: Copy | None


def convert(source: str | Path, target: Path, *, as_pytorch: bool = False) -> Copy:
    """Write a model in the format that the target's suffix names, and read it back.

    Parameters
    ----------
    source
        Any readable model file, also FILE#NAME.
    target
        .safetensors, .dp, .yaml, .pt; with DeePMD-kit installed also .pth, .pb.
    as_pytorch
        Take the weights of a model with TensorFlow's formulas over under PyTorch's.

    Raises
    ------
    ModelFileError
        The source cannot be read, the format cannot hold the model, or what was written is
        another model.
    ConfigError
        The format needs DeePMD-kit, which is not installed; or the target is a URL.
    """
    from dpa_core.interchange.files import load_model, save_model

    if is_url(target):
        raise ConfigError(f"{target}: models are written to files here; copy the file there")
    model = load_model(source)
    if as_pytorch:
        model = _under_pytorch(model, source)
    if target.suffix.lower() not in FROZEN:
        return check_copy(model, save_model(model, target))
    if find_dp() is None:
        other = target.with_suffix(".dp")
        raise ConfigError(
            f"{how_to_install({target: other})}\n{other} is written by\n"
            f"  dpaflow model convert {source} {other}"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".convert-") as folder:
        convert_backend(save_model(model, Path(folder) / "model.dp"), target)
    return check_copy(model, target, FROZEN_DIFFERENCE)


def compress(
    source: str | Path,
    target: Path,
    *,
    elements: Sequence[str] = (),
    data: Sequence[Path] = (),
    **settings: float,
) -> tuple[CompressionReport, Copy]:
    """Write a compressed model for inference, read it back and compare it with the original.

    Parameters
    ----------
    source
        Any readable model file, also FILE#NAME.
    target
        A .safetensors file.
    elements
        Keep only these, in this order; empty keeps all.
    data
        Structures to compare the two models on, a few of them; empty takes a made-up one.
    settings
        `min_distance`, `tolerance`, `max_bytes` of `dpa_core.compress.compress`.

    Raises
    ------
    ConfigError
        As `dpa_core.compress.compress`, or the target has another suffix.
    """
    from dpa_core.compress import compress as run
    from dpa_core.finetune import remap_types
    from dpa_core.interchange.files import load_model, save_model

    if is_url(target) or target.suffix.lower() != ".safetensors":
        raise ConfigError(f"{target}: compressed models are written to .safetensors files here")
    model = load_model(source)
    if elements:
        model = remap_types(model, elements)
    compressed, report = run(model, **settings)
    note = {
        "file": str(source).rpartition("/")[2],
        "value_error": report.value_error,
        "slope_error": report.slope_error,
    }
    save_model(compressed, target, model.provenance | {"compressed": note})
    compressed = load_model(target)
    found = _differences_on(model, compressed, data) if data else _differences(model, compressed)
    if not (found[0] < COMPRESSED_DIFFERENCE[0] and found[1] < COMPRESSED_DIFFERENCE[1]):
        logger.warning(
            "the compressed model is further off than %g eV/atom or %g eV/Å; test it before it is "
            "used. In single precision that may be rounding, where energies are large",
            *COMPRESSED_DIFFERENCE,
        )
    return report, Copy(target, *found)


def _differences_on(one: Potential, other: Potential, data: Sequence[Path]) -> tuple[float, float]:
    """Do as `_differences` on some frames of data."""
    from dpa_core.batch import make_batch
    from dpa_core.data import open_dataset
    from dpa_core.derivatives import predict

    dataset = open_dataset(list(data), type_map=one.type_map)
    energy = force = 0.0
    for k in range(0, len(dataset), -(-len(dataset) // MAX_FRAMES)):
        batch = make_batch([dataset[k]], one.spec)
        want, have = predict(one, batch), predict(other, batch)
        atoms = max(1, int((batch.atype >= 0).sum()))
        energy = max(energy, float((want.energy - have.energy).abs().max()) / atoms)
        force = max(force, float((want.force - have.force).abs().max()))
    return energy, force


def _under_pytorch(model: Potential, source: str | Path) -> Potential:
    """Return the same weights under PyTorch's formulas, and say what that changes."""
    from dpa_core.interchange.content import Content, build
    from dpa_core.tensorflow import under_pytorch

    provenance = model.provenance | {"as_pytorch": str(source)}
    content = Content(under_pytorch(model.config), model.state_dict(), provenance)
    result = build(content, source)
    energy, force = _differences(model, result)
    logger.warning(
        "PyTorch's formulas change energies by up to %.2g eV/atom and forces by up to %.2g eV/Å on "
        "a made-up structure; test the model on data, or finetune it, before it is used",
        energy, force,
    )  # fmt: skip
    return result


def members(path: str | Path) -> list[str]:
    """Return the single models of a file: FILE#0, FILE#1, ... of a committee, else the path."""
    from dpa_core.interchange.files import read_header, split_name

    _, name = split_name(path)
    heads = read_header(path)["config"].get("heads", 1)
    return [str(path)] if name is not None or heads == 1 else [f"{path}#{k}" for k in range(heads)]


def export(source: str | Path, target: Path) -> list[Exported]:
    """Write the frozen model of DeePMD-kit that LAMMPS loads, and the .dp file it is made from.

    Parameters
    ----------
    source
        A model file; of a committee every model is written, to numbered files.
    target
        .pth or .pb.

    Returns
    -------
    list[Exported]
        One for every model. Without DeePMD-kit only the .dp files are there.

    Raises
    ------
    ConfigError
        The suffix is another.
    ModelFileError
        As for `convert`.
    """
    from dpa_core.interchange.files import load_model, save_model

    if is_url(target) or target.suffix.lower() not in FROZEN:
        raise ConfigError(
            f"{target}: LAMMPS reads frozen models of DeePMD-kit; give a file here that ends with "
            f"{', '.join(FROZEN[:-1])} or {FROZEN[-1]}"
        )
    found = members(source)
    written = []
    for k, one in enumerate(found):
        number = f"-{k}" if len(found) > 1 else ""
        frozen = target.with_name(f"{target.stem}{number}{target.suffix}")
        model = load_model(one)
        made = save_model(model, frozen.with_suffix(".dp"))
        copy = None
        if find_dp() is not None:
            copy = check_copy(model, convert_backend(made, frozen), FROZEN_DIFFERENCE)
        written.append(Exported(frozen, made, copy))
    return written


def check_copy(model: Potential, path: Path, limit: float = DIFFERENCE) -> Copy:
    """Read a written file and compare energy and forces of a small structure of all elements.

    Raises
    ------
    ModelFileError
        They differ by more than `limit`, eV/atom or eV/Å.
    """
    from dpa_core.interchange.files import load_model

    energy, force = _differences(model, load_model(path))
    if not max(energy, force) < limit:
        raise ModelFileError(
            f"{path}: holds another model than it was made from: energies differ by {energy:.2g} "
            f"eV/atom, forces by {force:.2g} eV/Å (allowed: {limit:g}); use another format"
        )
    return Copy(path, energy, force)


def _differences(one: Potential, other: Potential) -> tuple[float, float]:
    """Largest difference of energy, eV/atom, and force, eV/Å, of two models."""
    want, have = _probe(one), _probe(other)
    energy = float(abs(have.energy - want.energy).max()) / want.atom_energy.shape[1]
    return energy, float(abs(have.force - want.force).max())


def _probe(model: Potential) -> Any:
    """Evaluate a jittered grid of atoms of all elements in turn."""
    random = np.random.default_rng(0)
    ntypes = len(model.type_map)
    natoms = min(max(8, 2 * ntypes), MAX_ATOMS)
    side = round(np.ceil(natoms ** (1 / 3)))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3), axis=-1).reshape(-1, 3)[:natoms]
    coord = SPACING * grid + random.uniform(-JITTER, JITTER, (natoms, 3))
    numbers = model.config.fitting_net
    fparam = random.normal(size=(1, numbers.numb_fparam)) if numbers.numb_fparam else None
    aparam = random.normal(size=(1, natoms, numbers.numb_aparam)) if numbers.numb_aparam else None
    box = SPACING * side * np.eye(3)
    return model.evaluate(
        coord[None], box[None], np.arange(natoms) % ntypes, fparam=fparam, aparam=aparam
    )


def describe(path: str | Path) -> list[str]:
    """Return what a model file holds, a few lines for people."""
    from dpa_core.interchange.files import load_model, read_header

    header, model = read_header(path), load_model(path)
    config, known = header["config"], trained_elements(header["provenance"])
    descriptor, fitting = config["descriptor"], config["fitting_net"]
    count = sum(p.numel() for p in model.parameters())
    bias = (model.out_bias + model.fitting.bias_atom_e).tolist()
    names = model.type_map
    version = f", version {header['version']}" if "version" in header else ""
    missing = [name for name in names if known is not None and name not in known]
    rows = {
        "format": f"{header['format']}{version}",
        "descriptor": _descriptor(descriptor),
        "fitting": f"layers {' '.join(map(str, fitting['neuron']))}",
        "heads": str(model.config.heads),
        "precision": f"{descriptor['precision']} descriptor, {fitting['precision']} fitting net",
        "type_map": " ".join(names),
        "trained on": "not recorded" if known is None else " ".join(known),
        **({"untrained": " ".join(missing)} if missing else {}),
        "rcut": f"{descriptor['rcut']} Å (smooth from {descriptor['rcut_smth']} Å)",
        "sel": str(descriptor["sel"]),
        **_compression(model, header["provenance"]),
        "bias, eV": ", ".join(f"{e} {b:.4f}" for e, b in zip(names, bias, strict=True)),
        "origin": _made_by(header["provenance"]),
    }
    head = f"{path}: {descriptor['type']}, {count:,} parameters"
    return [head, *(f"{name:<11}{value}" for name, value in rows.items())]


def _compression(model: Potential, provenance: Mapping[str, Any]) -> dict[str, str]:
    """Return a line about the tables of a compressed model."""
    tables = model.config.descriptor.compression
    if tables is None:
        return {}
    table = model.get_buffer("descriptor.tables.table")
    origin = _block(provenance, "compressed").get("file", "not recorded")
    return {
        "compressed": f"{len(table)} tables of {tables.nbins} bins (stride {tables.stride:g}), "
        f"{table.nbytes / 2**20:.3g} MiB, down to {tables.min_distance:g} Å, from {origin}; for "
        "inference only"
    }


def _descriptor(block: Mapping[str, Any]) -> str:
    layers = f"neuron {' '.join(map(str, block['neuron']))}, axis_neuron {block['axis_neuron']}"
    if block["type"] != "dpa1":
        return f"{block['type']}, {layers}"
    return (
        f"dpa1, {block['attn_layer']} attention layers, {block['tebd_input_mode']} type "
        f"embedding of {block['tebd_dim']}, {layers}"
    )


def trained_elements(provenance: Mapping[str, Any]) -> list[str] | None:
    """Return the elements of the data a model has ever been trained on; None if not recorded.

    A type map may name elements that no training frame held: what a model says about those
    has no meaning.
    """
    found: dict[str, None] = {}
    known = False
    for level in _generations(provenance):
        names = level.get("elements") or _block(level, "origin").get("observed_type")
        if isinstance(names, list):
            known = True
            found |= dict.fromkeys(map(str, names))
    return list(found) if known else None


def _generations(provenance: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield what is told of a model, then of those it was finetuned from; oldest last."""
    level = provenance
    while level:
        yield level
        level = _block(_block(level, "finetuned_from"), "provenance")


def _block(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a part of what a file tells about itself, which may be anything."""
    found = document.get(key)
    return found if isinstance(found, Mapping) else {}


def _made_by(provenance: Mapping[str, Any]) -> str:
    """Return the way of a model in words, newest first."""
    parts = []
    for level in _generations(provenance):
        if bias := _block(level, "bias"):
            parts.append(f"energy bias refitted ({bias.get('mode')})")
        if "steps" in level:
            own = _block(level, "software").get("dpaflow", "?")
            parts.append(f"trained by dpaflow {own}, {level['steps']} steps")
        if before := _block(level, "finetuned_from"):
            parts.append(f"from {before.get('file')}")
        facts = _block(level, "origin").items()
        parts += [
            f"{k} {v}" for k, v in facts if isinstance(v, str | int | float) and k != "format"
        ]
    return "; ".join(parts) or "not recorded"
