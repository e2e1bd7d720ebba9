"""`dpaflow model ...`: the same functions as in a pipeline, by hand on files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ops.train import RunTrainConfig

app = typer.Typer(
    help="Train, finetune, test and inspect models by hand.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def _local(text: str) -> Path:
    """Return a path; what is behind an s3:// URL is fetched."""
    from ops.storage import localize

    return Path(localize(text))


LOCAL: dict[str, Any] = {"parser": _local, "metavar": "PATH"}
MODEL = {**LOCAL, "metavar": "MODEL"}
DATA = {**LOCAL, "metavar": "DATA"}
Model = Annotated[
    Path,
    typer.Argument(
        help="Model file of any format, or its s3:// URL; FILE#NAME for one of several "
        "models in it.",
        **MODEL,
    ),
]
Data = Annotated[
    list[Path], typer.Argument(help="Labelled data, any readable format; also s3:// URLs.", **DATA)
]
Config = Annotated[
    Path, typer.Argument(help="Training YAML or JSON, or DeePMD input.json; paths from here.")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")]
Train = Annotated[
    list[Path] | None, typer.Option("--data", help="Instead of the config's data.", **LOCAL)
]
Valid = Annotated[list[Path] | None, typer.Option("--valid", help="Validation data.", **LOCAL)]


def log_to_terminal() -> None:
    """Show what steps log, as it is."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")


def read_train_config(path: Path) -> RunTrainConfig:
    """Read the settings of a run: our YAML or JSON, or a DeePMD `input.json`.

    Raises
    ------
    ConfigError
        All mistakes of the file, in the terms of the format it is written in.
    """
    from dpa_core.config import parse_config
    from dpa_core.deepmd_input import convert, is_deepmd_input
    from dpa_core.errors import ConfigError
    from dpa_core.yaml_file import read_yaml
    from ops.train import RunTrainConfig

    data = read_yaml(path)
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping with model, training, ...")
    if is_deepmd_input(data):
        # Its defaults are others than ours, so a user should know which were taken.
        logging.getLogger(__name__).info("%s is read as an input of DeePMD-kit", path)
        data = convert(data, str(path)).model_dump(mode="json")
    return parse_config(RunTrainConfig, data, str(path))


@app.command()
def train(
    config: Config, out: Out = Path("train"), data: Train = None, valid: Valid = None
) -> None:
    """Train a model; started again in the same folder it continues."""
    _train(config, out, data, valid, None)


@app.command()
def finetune(
    model: Model, config: Config, out: Out = Path("finetune"), data: Train = None,
    valid: Valid = None,
) -> None:  # fmt: skip
    """Refit the energy bias of a model, then train it further on other data."""
    _train(config, out, data, valid, model)


def _train(
    config: Path, out: Path, data: list[Path] | None, valid: list[Path] | None, model: Path | None
) -> None:
    from ops.train import TrainInputs, run_train

    log_to_terminal()
    inputs = TrainInputs(tuple(data or ()), tuple(valid or ()), model)
    result = run_train(inputs, read_train_config(config), out)
    typer.echo(f"model: {result.model}")
    if result.best != result.model:
        typer.echo(f"best:  {result.best}")


@app.command("change-bias")
def change_bias(
    model: Model,
    data: Annotated[list[Path] | None, typer.Argument(help="Labelled data to fit.", **DATA)] = None,
    out: Out = Path("bias"),
    mode: Annotated[
        str, typer.Option(help="change: shift by the residual; set: from the labels alone.")
    ] = "change",
    set_bias: Annotated[
        list[str] | None, typer.Option("--set", help="ELEMENT=eV, instead of data; repeatable.")
    ] = None,
) -> None:
    """Refit the energy bias of a model to data, or set it by hand."""
    from dpa_core.config import parse_config
    from dpa_core.errors import ConfigError
    from ops.bias import BiasConfig, BiasInputs, run_bias

    log_to_terminal()
    if bool(data) == bool(set_bias):
        raise ConfigError("give either data to fit, or --set ELEMENT=eV")
    if set_bias:
        typer.echo(f"model: {_set_values(model, set_bias, out)}")
        return
    result = run_bias(
        BiasInputs(model, data or []), parse_config(BiasConfig, {"mode": mode}, "options"), out
    )
    for element, after in result.summary["after"].items():
        typer.echo(f"{element:>3} {result.summary['before'][element]:14.6f} -> {after:14.6f} eV")
    typer.echo(f"model: {result.model}")


def _set_values(model: Path, assignments: list[str], out: Path) -> Path:
    from dpa_core.bias import set_bias_values
    from dpa_core.errors import ConfigError
    from dpa_core.interchange.files import load_model, save_model

    values = {}
    for text in assignments:
        element, _, number = text.partition("=")
        try:
            values[element] = float(number)
        except ValueError as error:
            raise ConfigError(f"--set {text}: expected ELEMENT=eV, e.g. Cu=-3.72") from error
    loaded = load_model(model)
    set_bias_values(loaded, values)
    return save_model(loaded, out / "model.safetensors")


@app.command("test")
def run_test_command(
    model: Model,
    data: Data,
    out: Out = Path("test"),
    plots: Annotated[bool, typer.Option(help="Draw parity plots.")] = True,
) -> None:
    """Test a model on labelled data: errors per system and overall, parity plots."""
    from ops.storage import split_part
    from ops.test import RunTestConfig, TestInputs, run_test

    log_to_terminal()
    name = model.stem + split_part(model)[1].replace("#", "-")
    run_test(TestInputs({name: model}, _named(data)), RunTestConfig(plots=plots), out)
    typer.echo(f"results: {out / 'results.json'}")


def _named(paths: list[Path]) -> dict[str, list[Path]]:
    """Name data by their last part, or by the whole path where that is not unique."""
    last = [path.resolve().name for path in paths]
    return {
        name if last.count(name) == 1 else str(path).strip("/").replace("/", "-"): [path]
        for path, name in zip(paths, last, strict=True)
    }


@app.command("eval-desc")
def eval_desc(
    model: Model, data: Data, out: Annotated[Path, typer.Option("--out", "-o")] = Path("desc.npz")
) -> None:
    """Write the descriptors of all atoms: `descriptor` (N, D), `frame`, `element` (N,)."""
    import numpy as np

    from dpa_core.batch import make_batch
    from dpa_core.data import open_dataset
    from dpa_core.interchange.files import load_model

    loaded = load_model(model)
    dataset = open_dataset(list(data), type_map=loaded.type_map)
    blocks: list[np.ndarray] = []
    frames: list[int] = []
    elements: list[str] = []
    for number in range(len(dataset)):
        batch = make_batch([dataset[number]], loaded.spec)
        blocks.append(loaded.describe(batch).cpu().numpy())
        frames += [number] * len(blocks[-1])
        elements += [loaded.type_map[t] for t in batch.atype.tolist()]
    table = np.concatenate(blocks)
    temporary = out.with_name(f".{out.name}.tmp.npz")
    np.savez(temporary, descriptor=table, frame=np.array(frames), element=np.array(elements))
    temporary.replace(out)
    typer.echo(f"{len(frames)} atoms, {table.shape[1]} columns: {out}")


@app.command()
def devi(
    data: Annotated[
        list[Path], typer.Argument(help="Structures, any readable data format.", **DATA)
    ],
    models: Annotated[
        list[Path],
        typer.Option("--model", "-m", help="Member; repeatable. One alone: its heads.", **LOCAL),
    ],
    out: Annotated[Path, typer.Option("--out", "-o")] = Path("model_devi.out"),
    relative: Annotated[
        float | None, typer.Option(help="Relative force deviation, damped by this, eV/Å.")
    ] = None,
    relative_v: Annotated[
        float | None,
        typer.Option("--relative-v", "--relative_v", help="The same of virials, eV/atom."),
    ] = None,
) -> None:
    """Write the deviation of a committee on data, in the format of `dp model-devi`."""
    import numpy as np

    from dpa_core.committee import Committee, Deviation, write_model_devi
    from dpa_core.data import open_dataset

    committee = Committee.load(models)
    dataset = open_dataset(list(data), type_map=committee.type_map)
    parts, size = [], 256  # frames read at once
    for start in range(0, max(len(dataset), 1), size):
        frames = [dataset[k] for k in range(start, min(start + size, len(dataset)))]
        parts.append(committee.deviation(frames, relative=relative, relative_v=relative_v))
    columns = (np.concatenate(values) for values in zip(*parts, strict=True))
    write_model_devi(out, range(len(dataset)), Deviation(*columns))
    typer.echo(f"{len(dataset)} frames, {committee.size} models: {out}")
