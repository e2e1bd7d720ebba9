"""The table of OPs: which function, inputs and settings a name stands for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from dpa_core.errors import ConfigError


class OpSpec(NamedTuple):
    """One OP, named by references "module:attribute" so that nothing is imported early.

    Attributes
    ----------
    function
        `function(inputs, config, outdir)`.
    inputs
        A NamedTuple whose fields are paths, lists of paths or dictionaries of those.
    config
        A `dpa_core.config.Config`.
    resumable
        True if the function continues from what an interrupted run left in `outdir`;
        otherwise the folder is emptied before every attempt.
    light
        True if small files (tables, figures, logs) of its inputs are all that it reads.
    page
        Name of the HTML page it writes, for a dashboard.
    result
        `result(outdir)` returns a few numbers to show with the step, as plain JSON.
    """

    function: str
    inputs: str
    config: str
    resumable: bool = False
    light: bool = False
    page: str = ""
    result: str = ""


OPS: Mapping[str, OpSpec] = {
    "collect": OpSpec(
        "ops.collect:run_collect", "ops.collect:CollectInputs", "ops.collect:CollectConfig"
    ),
    "train": OpSpec(
        "ops.train:run_train", "ops.train:TrainInputs", "ops.train:RunTrainConfig", resumable=True
    ),
    "bias": OpSpec("ops.bias:run_bias", "ops.bias:BiasInputs", "ops.bias:BiasConfig"),
    "test": OpSpec("ops.test:run_test", "ops.test:TestInputs", "ops.test:RunTestConfig"),
    "structures": OpSpec(
        "ops.structures:run_structures",
        "ops.structures:StructuresInputs",
        "ops.structures:StructuresConfig",
    ),
    "explore": OpSpec(
        "ops.explore:run_explore",
        "ops.explore:ExploreInputs",
        "ops.explore:ExploreConfig",
        resumable=True,
    ),
    "select": OpSpec("ops.select:run_select", "ops.select:SelectInputs", "ops.select:SelectConfig"),
    "prepare": OpSpec(
        "ops.label:prepare_labels", "ops.label:PrepareInputs", "ops.label:PrepareConfig"
    ),
    "label": OpSpec(
        "ops.label:run_labels", "ops.label:LabelInputs", "ops.label:LabelConfig", resumable=True
    ),
    "decide": OpSpec(
        "ops.decide:run_decide",
        "ops.decide:DecideInputs",
        "ops.decide:DecideConfig",
        light=True,
        result="ops.decide:brief",
    ),
    "report": OpSpec(
        "ops.report:write_report",
        "ops.report:ReportInputs",
        "ops.report:ReportConfig",
        light=True,
        page="report.html",
    ),
    "publish": OpSpec(
        "ops.publish:run_publish", "ops.publish:PublishInputs", "ops.publish:PublishConfig"
    ),
    "report_iteration": OpSpec(
        "ops.report_loop:write_iteration",
        "ops.report_loop:IterationInputs",
        "ops.report_loop:IterationConfig",
        light=True,
        page="iteration.html",
    ),
}


def load_reference(reference: str) -> Any:
    """Return what "module:attribute" names."""
    module, _, attribute = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{reference!r} cannot be imported: {error}") from error


def find_op(name: str) -> OpSpec:
    """Return the OP called `name`: one of `OPS`, or a reference "module:attribute" to an OpSpec."""
    if name in OPS:
        return OPS[name]
    if ":" in name:
        spec = load_reference(name)
        if isinstance(spec, OpSpec):
            return spec
        raise ConfigError(f"op {name!r} is a {type(spec).__name__}, expected an OpSpec")
    raise ConfigError(f"op {name!r} is unknown; allowed: {', '.join(OPS)}")
