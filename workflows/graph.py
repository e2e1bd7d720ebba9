"""A graph of steps as plain data, and the same graph as dflow Steps for any backend.

A node refers to another node's results as "KEY:path/in/its/folder".
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dpa_core.errors import ConfigError
from ops.base import iter_paths, map_paths
from ops.storage import is_outside, is_url, signature, split_part

if TYPE_CHECKING:
    from workflows.schema import Execution

FINGERPRINT_VERSION = 1


class Node(NamedTuple):
    """One step.

    Attributes
    ----------
    key
        Unique name: lower case, digits and dashes.
    op
        Name of the OP, see `ops.catalog.find_op`.
    config
        Settings, plain JSON.
    inputs
        Fields of the OP's inputs; paths are absolute, URLs or "KEY:path".
    files
        Files and folders outside the pipeline that the step reads (or patterns with `*`).
    salt
        Another number makes the step run again although nothing else changed.
    """

    key: str
    op: str
    config: dict[str, Any]
    inputs: dict[str, Any] = {}  # noqa: RUF012  (a NamedTuple is immutable, nobody writes here)
    files: tuple[str, ...] = ()
    salt: int = 0


def check(nodes: Sequence[Node]) -> None:
    """Raise ConfigError on a repeated key or a reference to a later or unknown step."""
    seen: set[str] = set()
    for node in nodes:
        if node.key in seen:
            raise ConfigError(
                f"two steps are both called {node.key!r}; rename a data set, model or target"
            )
        if unknown := needs(node) - seen:
            raise ConfigError(f"step {node.key!r} needs {sorted(unknown)}, which come later or not")
        seen.add(node.key)


def needs(node: Node) -> set[str]:
    """Keys of the steps whose results a node reads."""
    paths = [str(path) for path in iter_paths(node.inputs)]
    return {path.partition(":")[0] for path in paths if not is_outside(path)}


def levels(nodes: Sequence[Node]) -> list[list[Node]]:
    """Group nodes so that those of one level depend on earlier levels only."""
    depth: dict[str, int] = {}
    for node in nodes:
        depth[node.key] = 1 + max((depth[key] for key in needs(node)), default=-1)
    count = 1 + max(depth.values(), default=-1)
    return [[node for node in nodes if depth[node.key] == level] for level in range(count)]


def downstream(nodes: Sequence[Node], keys: Iterable[str]) -> set[str]:
    """Return `keys` and every step that directly or indirectly reads their results."""
    found = set(keys)
    for node in nodes:
        if needs(node) & found:
            found.add(node.key)
    return found


def remaining(nodes: Sequence[Node], todo: Container[str], steps: Path) -> list[Node]:
    """Return the nodes in `todo`; they find the results of the others by absolute paths.

    dflow forks a process even for a step that it skips: a loop of many iterations would spend
    minutes on nothing at every start.
    """

    def place(path: str) -> str:
        key, _, rest = path.partition(":")
        if is_outside(path) or key in todo:
            return path
        return str((steps / key / rest).resolve())

    return [
        node._replace(inputs=map_paths(node.inputs, place)) for node in nodes if node.key in todo
    ]


def fingerprints(
    nodes: Sequence[Node], signatures: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Hash of everything a step's result depends on: op, settings, files, and upstream hashes.

    Parameters
    ----------
    nodes
        The graph.
    signatures
        What stands for the content of outside files, by path; a path that is not in it stands
        for itself, so that the result is the same wherever it is computed. Left out: the files,
        and the servers of URLs, are asked.
    """
    sign = functools.cache(_signature) if signatures is None else lambda p: signatures.get(p, p)
    result: dict[str, str] = {}
    for node in nodes:
        document = {
            "version": FINGERPRINT_VERSION,
            "op": node.op,
            "config": node.config,
            "inputs": node.inputs,
            "upstream": {key: result[key] for key in sorted(needs(node))},
            "files": [sign(path) for path in node.files],
            **({"salt": node.salt} if node.salt else {}),
        }
        text = json.dumps(document, sort_keys=True)
        result[node.key] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return result


def _signature(pattern: str) -> str | list[tuple[str, int, int]]:
    """Names, sizes and times of the files behind a path; contents may be terabytes."""
    import glob

    if is_url(pattern):
        return signature(pattern)
    pattern, _ = split_part(pattern)  # which model of a file is said by the inputs
    roots = [Path(found) for found in sorted(glob.glob(pattern))]  # noqa: PTH207 (absolute)
    files = [
        path
        for root in roots
        for path in (sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root])
    ]
    stats = [(path, path.stat()) for path in files]
    return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats]


def to_dflow(
    nodes: Sequence[Node],
    execution: Execution,
    prints: Mapping[str, str],
    executor: Callable[[Node], Any] = lambda _: None,
) -> Any:
    """Build the dflow Steps: one list of parallel steps per level, one template per step.

    Steps, not DAG: dflow's DAG drops dependents of failed tasks silently in debug mode.

    Parameters
    ----------
    nodes
        The graph.
    execution
        Time limits and retries.
    prints
        Fingerprints of the steps.
    executor
        Returns the dflow Executor of a step, None for one that runs here.
    """
    from dflow import Steps

    from ops.base import StepRequest
    from ops.step_op import step

    root = Steps("pipeline")
    done: dict[str, Any] = {}
    for level in levels(nodes):
        for node in level:
            request = StepRequest(
                key=node.key,
                op=node.op,
                config=node.config,
                inputs=node.inputs,
                fingerprint=prints[node.key],
                timeout=execution.step_timeout(node.key, node.op),
                retries=execution.retries,
            )
            inputs = {key: done[key] for key in sorted(needs(node))}
            done[node.key] = step(request, inputs, executor=executor(node))
        root.add([done[node.key] for node in level])
    return root


def slug(name: str) -> str:
    """Return a name as part of a key: lower case, dashes for underscores."""
    return name.lower().replace("_", "-")
