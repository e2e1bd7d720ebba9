"""`dpaflow model convert|compress|export|info`: model files of dpaflow and of DeePMD-kit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workflows.cli_model import LOCAL, Model, log_to_terminal

app = typer.Typer(rich_markup_mode=None)


@app.command()
def convert(
    model: Model,
    out: Annotated[
        Path,
        typer.Argument(help="File to write: .safetensors, .dp, .yaml, .pt; with DeePMD-kit "
                       "also .pth, .pb."),
    ],
    as_pytorch: Annotated[
        bool, typer.Option("--as-pytorch", help="Take a model with TensorFlow's formulas over "
                           "under PyTorch's; says how far energies and forces change.")
    ] = False,
) -> None:  # fmt: skip
    """Write a model in another format; FILE#NAME takes one model of several in a file."""
    from ops.model_files import convert as run

    log_to_terminal()
    typer.echo(run(model, out, as_pytorch=as_pytorch))


@app.command()
def compress(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help=".safetensors file to write.")],
    min_distance: Annotated[
        float, typer.Option(help="Å. Tables reach down to this distance of two atoms.")
    ] = 0.3,
    tolerance: Annotated[
        float, typer.Option(help="Largest error of the tables, as part of the largest value.")
    ] = 1e-8,
    max_size: Annotated[float, typer.Option(help="GiB. Largest size of all tables.")] = 1.0,
    elements: Annotated[
        str, typer.Option(help="Keep only these, e.g. Al,Cu; fewer pairs are fewer tables.")
    ] = "",
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", help="Structures to measure the error on; repeatable.", **LOCAL),
    ] = None,
) -> None:
    """Write a compressed model: faster, for inference only; says how far it is off."""
    from ops.model_files import compress as run

    log_to_terminal()
    report, copy = run(
        model, out, elements=[e.strip() for e in elements.split(",")] if elements else [],
        data=data or [], min_distance=min_distance, tolerance=tolerance,
        max_bytes=max_size * 2**30,
    )  # fmt: skip
    tables = report.config
    typer.echo(
        f"{report.ntables} tables of {tables.nbins} bins (stride {tables.stride:g}), "
        f"{report.nbytes / 2**20:.3g} MiB, down to {tables.min_distance:g} Å; off by "
        f"{report.value_error:.1g} of the largest value and {report.slope_error:.1g} of the "
        f"largest slope\n{copy}"
    )


@app.command()
def export(
    model: Model,
    lammps: Annotated[
        Path,
        typer.Option("--lammps", help="Frozen model to write: .pth (PyTorch), .pb (TensorFlow)."),
    ],
) -> None:
    """Write the frozen model that LAMMPS's `pair_style deepmd` loads, by DeePMD-kit's `dp`."""
    from dpa_core.errors import ConfigError
    from dpa_core.interchange.files import read_header
    from ops import deepmd_kit
    from ops.model_files import export as run

    files = run(model, lammps)
    for file in files:
        typer.echo(f"wrote {file.source}" if file.copy is None else file.copy)
    typer.echo("\nIn LAMMPS, with DeePMD-kit's plugin:\n")
    type_map = read_header(model)["type_map"]
    for line in deepmd_kit.lammps_lines([file.path for file in files], type_map):
        typer.echo(f"  {line}")
    if missing := {file.path: file.source for file in files if file.copy is None}:
        raise ConfigError(deepmd_kit.how_to_install(missing))


@app.command()
def info(
    model: Model,
    full: Annotated[bool, typer.Option("--full", help="All settings and what is known.")] = False,
    input_json: Annotated[
        bool, typer.Option("--input-json", help="Only the model as a DeePMD input.json.")
    ] = False,
) -> None:
    """Show what a model file holds."""
    import json

    from dpa_core.interchange.files import load_model, read_header
    from ops.model_files import describe

    if input_json:
        from dpa_core.deepmd_output import input_of_model

        loaded = load_model(model)
        document = input_of_model(loaded.config, loaded.provenance)
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    typer.echo("\n".join(describe(model)))
    if full:
        header = read_header(model)
        parts = {key: header[key] for key in ("config", "provenance")}
        typer.echo(json.dumps(parts, indent=1))
