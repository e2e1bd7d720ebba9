"""What can be said of the pipeline alone: entries that no step uses, files to copy."""

from __future__ import annotations

import difflib
import glob
import os
from collections.abc import Iterator
from pathlib import Path

from ops.storage import split_part
from workflows.backends.argo.scene import Scene
from workflows.doctor import Check
from workflows.schema import inline_templates
from workflows.schema_paths import is_seen_by_pods, map_paths
from workflows.schema_resources import DEFAULT, best_name


def check_entries(scene: Scene) -> Iterator[Check]:
    """Every entry of cluster.resources must be one that some step uses."""
    cluster = scene.cluster
    used = [best_name(cluster.resources, node.key, node.op) for node in scene.nodes]
    known = sorted({node.op for node in scene.nodes} | {node.key for node in scene.nodes})
    fine = True
    for name in cluster.resources:
        if name in (DEFAULT, *used):
            continue
        fine = False
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {', '.join(close)}" if close else f"steps are {', '.join(known[:8])}"
        found = f"cluster.resources.{name} belongs to no step"
        yield Check("resources", "error", found, f"{hint}; correct or remove it")
    if fine and scene.pipeline is not None:
        yield Check("resources", "ok", f"every entry is used; {len(scene.nodes)} steps at most")


def local_files(scene: Scene) -> list[str]:
    """Return the paths of this machine that the pipeline names."""
    pipeline = scene.pipeline
    found: dict[str, None] = {}

    def note(path: str) -> str:
        found[split_part(path)[0]] = None
        return path

    if pipeline is not None:
        map_paths(inline_templates(pipeline), note)
    return [path for path in found if pipeline and not is_seen_by_pods(path, pipeline)]


def check_files(scene: Scene) -> Iterator[Check]:
    """Local files are copied to the bucket: all must be there, and readable."""
    count, size, fine = 0, 0, True
    for pattern in local_files(scene):
        for path in _matches(pattern):
            if not os.access(path, os.R_OK):
                fine = False
                advice = f"check the path and its permissions: ls -l {path}"
                yield Check("local files", "error", f"{path} cannot be read", advice)
                continue
            count, size = count + 1, size + path.stat().st_size
    if fine and count:
        found = f"{count} files, {size / 1e6:.1f} MB, are copied to the bucket by submit"
        yield Check("local files", "ok", found)
    elif fine and scene.pipeline is not None:
        yield Check("local files", "ok", "none to copy")


def _matches(pattern: str) -> list[Path]:
    """Return the files behind a path or pattern; the path itself where there is none."""
    roots = [Path(found) for found in sorted(glob.glob(pattern))]  # noqa: PTH207 (absolute)
    files = []
    for root in roots or [Path(pattern)]:
        inside = [p for p in root.rglob("*") if not p.is_dir()] if root.is_dir() else []
        files += sorted(inside) or [root]
    return files
