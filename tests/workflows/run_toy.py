"""`python run_toy.py RUN NODES.json [EXECUTION]`: what `dpaflow run` does, with given nodes."""

import json
import sys
from pathlib import Path

from workflows import run_folder
from workflows.backends import local
from workflows.graph import Node
from workflows.schema import Execution

document = json.loads(Path(sys.argv[2]).read_text())
execution = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
result = local.run([Node(**n) for n in document], Execution(**{"parallel": 2, **execution}),
                   run_folder.RunFolder(Path(sys.argv[1])))  # fmt: skip
sys.exit(0 if result.succeeded else 130 if result.stopped else 1)
