"""`python -m dpa_core.train CONFIG OUTDIR`, alone or under torchrun."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from dpa_core.config import TrainConfig, parse_config
from dpa_core.errors import DPAError
from dpa_core.train.loop import train
from dpa_core.yaml_file import read_yaml


def train_main(arguments: Sequence[str] | None = None) -> int:
    """Train as a configuration file says; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dpa_core.train", description=__doc__)
    parser.add_argument("config", type=Path, help="TrainConfig as JSON or YAML")
    parser.add_argument("outdir", type=Path, help="folder of the run")
    parser.add_argument("--restart", action="store_true", help="start over, do not resume")
    options = parser.parse_args(arguments)
    try:
        config = parse_config(TrainConfig, read_yaml(options.config), str(options.config))
        train(config, options.outdir, resume=not options.restart)
    except DPAError as error:
        logging.getLogger(__name__).critical("%s: %s", type(error).__name__, error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(train_main())
