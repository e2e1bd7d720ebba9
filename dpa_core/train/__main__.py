"""`python -m dpa_core.train CONFIG OUTDIR`, alone or under torchrun."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from dpa_core.config import TrainConfig, parse_config
from dpa_core.errors import ConfigError, DPAError
from dpa_core.train.loop import train


def train_main(arguments: Sequence[str] | None = None) -> int:
    """Train as a configuration file says; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dpa_core.train", description=__doc__)
    parser.add_argument("config", type=Path, help="TrainConfig as JSON or YAML")
    parser.add_argument("outdir", type=Path, help="folder of the run")
    parser.add_argument("--restart", action="store_true", help="start over, do not resume")
    options = parser.parse_args(arguments)
    try:
        config = parse_config(TrainConfig, _read(options.config), str(options.config))
        train(config, options.outdir, resume=not options.restart)
    except DPAError as error:
        logging.getLogger(__name__).critical("%s: %s", type(error).__name__, error)
        return error.exit_code
    return 0


def _read(path: Path) -> object:
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON or YAML: {error}") from error


if __name__ == "__main__":
    sys.exit(train_main())
