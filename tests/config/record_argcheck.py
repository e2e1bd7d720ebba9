"""Record every key of DeePMD-kit's input files: aliases and default of each.

Needs an environment with deepmd-kit 3.2.0 (PyTorch backend) and nothing of dpaflow:

    python tests/config/record_argcheck.py tests/config/argcheck.json

`sections` is the schema of input files, `classes` the defaults of the classes that checkpoints
are made from, `types` what may stand in `type`, `inputs` what DeePMD-kit makes of the files in
deepmd_inputs.py before it trains.
"""

from __future__ import annotations

import inspect
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import deepmd
from deepmd.pt.model.descriptor.dpa1 import DescrptDPA1
from deepmd.pt.model.descriptor.se_a import DescrptSeA
from deepmd.pt.model.descriptor.se_atten_v2 import DescrptSeAttenV2
from deepmd.pt.model.task.ener import EnergyFittingNet
from deepmd.utils.argcheck import gen_args, normalize
from deepmd.utils.compat import update_deepmd_input
from deepmd_inputs import INPUTS

SECTIONS = {
    "model": ["standard"],
    "descriptor": ["se_atten", "se_atten_v2", "se_e2_a"],
    "fitting_net": ["ener"],
    "loss": ["ener"],
    "learning_rate": ["exp", "cosine", "wsd"],
    "optimizer": ["Adam", "AdamW"],
}
CLASSES = {
    "se_atten": DescrptDPA1,
    "se_atten_v2": DescrptSeAttenV2,
    "se_e2_a": DescrptSeA,
    "ener": EnergyFittingNet,
}


def key(argument: Any) -> dict[str, Any]:
    if argument.optional and not isinstance(argument.default, type(NO_DEFAULT)):
        record: dict[str, Any] = {"default": argument.default}
    else:
        record = {} if argument.optional else {"required": True}
    return record | ({"aliases": list(argument.alias)} if argument.alias else {})


def keys(argument: Any) -> dict[str, Any]:
    return {name: key(sub) for name, sub in argument.sub_fields.items()}


def schema() -> tuple[dict[str, Any], dict[str, Any]]:
    """Keys of every section, and the allowed values of `type`."""
    top = {argument.name: argument for argument in gen_args()}
    model = top["model"].sub_variants["type"].choice_dict["standard"]
    parts = top | {name: model.sub_fields[name] for name in ("descriptor", "fitting_net")}
    sections = {"": {name: key(argument) for name, argument in top.items()}}
    types = {}
    for name, kinds in SECTIONS.items():
        variant = parts[name].sub_variants["type"]
        types[name] = sorted([*variant.choice_dict, *variant.choice_alias])
        sections[name] = keys(parts[name])
        for kind in kinds:
            sections[f"{name}.{kind}"] = keys(variant.choice_dict[kind])
    training = top["training"]
    sections |= {name: keys(top[name]) for name in ("training", "validating")}
    for name in ("training_data", "validation_data"):
        sections[name] = keys(training.sub_fields[name])
    sections["type_embedding"] = keys(top["model"].sub_fields["type_embedding"])
    return sections, types


def signature(cls: type) -> dict[str, Any]:
    """Arguments of a class and of the bases it hands them on to, with their defaults."""
    record = {}
    for base in reversed(cls.__mro__):
        if not base.__module__.startswith("deepmd.") or "__init__" not in vars(base):
            continue
        for name, parameter in inspect.signature(base.__init__).parameters.items():
            if name != "self" and parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
                required = parameter.default is parameter.empty
                record[name] = {"required": True} if required else {"default": parameter.default}
    return record


def prepared(given: dict[str, Any]) -> dict[str, Any]:
    """Do what `dp train` does with a file first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return normalize(update_deepmd_input(json.loads(json.dumps(given)), warning=False))


NO_DEFAULT = next(a for a in gen_args() if a.name == "training").sub_fields["numb_steps"].default


def main() -> None:
    sections, types = schema()
    record = {
        "code": f"deepmd-kit {deepmd.__version__}",
        "sections": sections,
        "types": types,
        "classes": {name: signature(cls) for name, cls in CLASSES.items()},
        "inputs": [{"given": given, "prepared": prepared(given)} for given in INPUTS],
    }
    lines = [f"{json.dumps(name)}: {json.dumps(part)}" for name, part in record.items()]
    Path(sys.argv[1]).write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
