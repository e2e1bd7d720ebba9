"""What a run has produced, as hashes by name; times and paths are left out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TIMES = {"seconds", "elapsed", "started", "wall_time", "reused", "attempts"}
"""Keys of JSON files that may differ: what it took, not what came out."""
JSON = ("select.json", "explore.json", "decision.json", "labels.json", "trajectory.json")
BYTES = ("*.npy", "type.raw", "type_map.raw", "frames.csv", "model_devi.out")


def labels(run: Path) -> dict[str, str]:
    """Return the labels of the store: id -> hash of the file."""
    found = sorted((run / "labels" / "labels").glob("[!.]*/label.npz"))
    return {path.parent.name: digest(path.read_bytes()) for path in found}


def quarantined(run: Path) -> dict[str, str]:
    """Return the failed calculations: id -> reason."""
    found = sorted((run / "labels" / "failed").glob("[!.]*/info.json"))
    return {path.parent.name: json.loads(path.read_text())["reason"] for path in found}


def results(run: Path) -> dict[str, str]:
    """Return everything that has to be the same after any number of kills: name -> hash."""
    found = {f"label {name}": value for name, value in labels(run).items()}
    found |= {f"failed label {name}": reason for name, reason in quarantined(run).items()}
    steps = run / "steps"
    for pattern in BYTES:
        for path in sorted(steps.rglob(pattern)):
            # sources are told by their path
            found[_name(path, run)] = digest(path.read_bytes().replace(bytes(run), b"RUN"))
    for name in JSON:
        for path in sorted(steps.rglob(name)):
            document = without_times(json.loads(path.read_text()))
            if name == "trajectory.json":
                del document["id"]  # a hash of the model files, in whose headers are paths
            found[_name(path, run)] = digest(json.dumps(document, sort_keys=True).encode())
    models = [*steps.rglob("model.safetensors"), *(run / "models").glob("*.safetensors")]
    for path in sorted(models):
        found[_name(path, run)] = weights(path)
    return found


def differences(expected: dict[str, str], found: dict[str, str]) -> Iterator[str]:
    """Yield a line for every result that is missing, too much or different."""
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            yield f"missing: {name}"
        elif name not in expected:
            yield f"too much: {name}"
        elif expected[name] != found[name]:
            yield f"different: {name}"


def without_times(value: Any) -> Any:
    """Return a JSON document without `TIMES`."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def weights(path: Path) -> str:
    """Hash the tensors of a model file, not its header, which may tell when it was made."""
    from safetensors.numpy import load_file

    tensors = load_file(path)
    parts = [f"{k} {v.dtype} {v.shape}".encode() + v.tobytes() for k, v in sorted(tensors.items())]
    return digest(b"".join(parts))


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _name(path: Path, run: Path) -> str:
    return str(path.relative_to(run))
