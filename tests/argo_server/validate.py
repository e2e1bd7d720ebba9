"""What the Argo server and the Kubernetes API check before they take a workflow."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tests.argo_server.expressions import Depends, ExpressionError, Parser, tags

SIZE = 1024**2
"""Bytes of an object; etcd takes 1.5 MiB, Argo packs node statuses from 1 MiB on."""
ANNOTATIONS = 256 * 1024
LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
LABEL_KEY = re.compile(
    r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?"
)
DNS = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
TEMPLATE_NAME = re.compile(r"[A-Za-z0-9][-A-Za-z0-9]{0,127}")
PARAMETER_NAME = re.compile(r"[-A-Za-z0-9_]+")
ENV_NAME = re.compile(r"[A-Za-z_][-.\w]*")
QUANTITY = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(m|k|[KMGTPE]i|[MGTPE]|[eE][+-]?\d+)?")
DURATION = re.compile(r"(\d+(\.\d+)?(ns|us|ms|s|m|h))+|\d+|\d+d")
POLICIES = ("Always", "OnFailure", "OnError", "OnTransientError")
KINDS = {"container", "script", "dag", "steps", "resource", "suspend", "http", "plugin", "data",
         "containerSet"}  # fmt: skip
KNOWN = ("item", "steps.", "inputs.", "outputs.", "pod.", "workflow.", "tasks.")
GLOBAL = re.compile(
    r"workflow\.(name|namespace|uid|serviceAccountName|priority|mainEntrypoint|creationTimestamp.*"
    r"|(parameters|annotations|labels)(\..+)?)|node\.name|pod\.name"
)
TASK_OUTPUT = re.compile(
    r"tasks\.([-\w]+)\.(?:outputs\.(parameters|artifacts)\.([-\w]+)|(exitCode|status|id|startedAt"
    r"|finishedAt|outputs\.result))"
)
NOT_HERE = {
    "task": ("when", "withItems", "withParam", "withSequence", "hooks", "onExit", "templateRef",
             "inline", "continueOn"),
    "template": ("memoize", "synchronization", "daemon", "sidecars", "initContainers"),
    "spec": ("onExit", "hooks", "suspend", "synchronization", "workflowTemplateRef",
             "volumeClaimTemplates"),
}  # fmt: skip


class Refused(Exception):
    """The server refuses a workflow."""


class NotHere(Exception):
    """Argo knows this, the stub does not."""


def check(workflow: Mapping[str, Any]) -> None:
    """Raise `Refused` or `NotHere` unless a workflow can be run."""
    _schema(workflow)
    _metadata(workflow["metadata"])
    spec = workflow["spec"]
    _supported("spec", spec, "spec")
    templates = {t.get("name", ""): t for t in spec.get("templates", ())}
    _need(len(templates) == len(spec.get("templates", ())), "template names are not unique")
    _need(spec.get("entrypoint") in templates,
          f"spec.entrypoint: template {spec.get('entrypoint')!r} not found")  # fmt: skip
    volumes = [v["name"] for v in spec.get("volumes", ())]
    for parameter in spec.get("arguments", {}).get("parameters", ()):
        _need(parameter.get("value") is not None,
              f"spec.arguments.{parameter['name']}.value is required")  # fmt: skip
    arguments = {p["name"] for p in spec.get("arguments", {}).get("parameters", ())}
    for name, template in templates.items():
        place = f"templates.{name}"
        _need(TEMPLATE_NAME.fullmatch(name), f"{place}: invalid name")
        _supported("template", template, place)
        kinds = KINDS & set(template)
        _need(len(kinds) == 1, f"{place} must have one type, has {sorted(kinds)}")
        if not kinds & {"script", "dag"}:
            raise NotHere(f"{place}: {kinds}")
        _template(place, template, [*volumes, *(v["name"] for v in template.get("volumes", ()))])
        if "dag" in template:
            _dag(place, template, templates)
        _variables(place, template, arguments)
    size = len(json.dumps(workflow, separators=(",", ":")))
    _need(size <= SIZE, f"etcdserver: request is too large ({size} bytes)")


def _need(condition: Any, message: str) -> None:
    if not condition:
        raise Refused(message)


def _supported(kind: str, item: Mapping[str, Any], place: str) -> None:
    if found := sorted(set(NOT_HERE[kind]) & set(item)):
        raise NotHere(f"{place}: {', '.join(found)}")


def _schema(workflow: Mapping[str, Any]) -> None:
    """Check types with hera's models of the custom resource, and that no key is unknown."""
    from hera.workflows.models import Workflow
    from pydantic import ValidationError

    try:
        model = Workflow.model_validate(workflow)
    except ValidationError as error:
        raise Refused(f"json: cannot unmarshal: {error}") from error
    known = json.loads(model.model_dump_json(by_alias=True, exclude_unset=True))
    if unknown := list(_unknown(workflow, known, "")):
        raise Refused(f"unknown fields: {unknown}")
    _need(workflow.get("apiVersion") == "argoproj.io/v1alpha1", "apiVersion: argoproj.io/v1alpha1")
    _need(workflow.get("kind") == "Workflow", "kind: Workflow")


def _unknown(given: Any, known: Any, place: str) -> Iterator[str]:
    if isinstance(given, Mapping) and isinstance(known, Mapping):
        for name, value in given.items():
            if name not in known:
                yield f"{place}.{name}"
            else:
                yield from _unknown(value, known[name], f"{place}.{name}")
    elif isinstance(given, list) and isinstance(known, list):
        for number, (a, b) in enumerate(zip(given, known, strict=True)):
            yield from _unknown(a, b, f"{place}[{number}]")


def _metadata(metadata: Mapping[str, Any]) -> None:
    name = metadata.get("name") or metadata.get("generateName", "")
    _need(name, "either name or generateName is required")
    _need(len(name) <= 63, f"workflow name {name!r} must not be more than 63 characters long")
    _need(DNS.fullmatch(name.rstrip("-")), f"metadata.name: Invalid value: {name!r}")
    for key, value in metadata.get("labels", {}).items():
        _need(LABEL_KEY.fullmatch(key), f"metadata.labels: Invalid value: {key!r}")
        _need(LABEL.fullmatch(value), f"metadata.labels: Invalid value: {value!r}")
    annotations = metadata.get("annotations", {})
    for key in annotations:
        _need(LABEL_KEY.fullmatch(key), f"metadata.annotations: Invalid value: {key!r}")
    size = sum(len(key) + len(value) for key, value in annotations.items())
    _need(size <= ANNOTATIONS, f"metadata.annotations: Too long: {size} bytes")


def _template(place: str, template: Mapping[str, Any], volumes: list[str]) -> None:
    inputs, outputs = template.get("inputs", {}), template.get("outputs", {})
    for kind in ("parameters", "artifacts"):
        for group in (inputs, outputs):
            names = [item["name"] for item in group.get(kind, ())]
            _need(len(set(names)) == len(names), f"{place}: {kind} are not unique: {names}")
            for name in names:
                _need(PARAMETER_NAME.fullmatch(name), f"{place}: invalid name {name!r}")
    if "retryStrategy" in template:
        _retry(f"{place}.retryStrategy", template["retryStrategy"])
    if "dag" in template:
        _need("timeout" not in template, f"{place}: timeout can only be applied to pods")
        return
    paths = [a.get("path") for a in inputs.get("artifacts", ())]
    _need(all(paths), f"{place}: path of an input artifact is required")
    _need(len(set(paths)) == len(paths), f"{place}: must be unique: {paths}")
    for artifact in outputs.get("artifacts", ()):
        _need(artifact.get("path"), f"{place}: path of output artifact {artifact['name']} missing")
    for parameter in outputs.get("parameters", ()):
        source = parameter.get("valueFrom", {})
        _need(set(source) & {"path"}, f"{place}: valueFrom.path of {parameter['name']} required")
    if "timeout" in template:
        _need(DURATION.fullmatch(template["timeout"]), f"{place}: invalid timeout format")
    if "activeDeadlineSeconds" in template:
        text = str(template["activeDeadlineSeconds"])
        _need(text.isdigit() or "{{" in text, f"{place}: activeDeadlineSeconds {text}")
    _container(place, template["script"], volumes, paths)


def _container(place: str, script: Mapping[str, Any], volumes: list[str], paths: list[str]) -> None:
    _need(script.get("image"), f"{place}: image is required")
    _need(script.get("source") is not None, f"{place}: source is required")
    mounts = [mount["mountPath"].rstrip("/") for mount in script.get("volumeMounts", ())] + paths
    _need(len(set(mounts)) == len(mounts), f"{place}: mountPath: must be unique: {mounts}")
    for mount in script.get("volumeMounts", ()):
        _need(mount["name"] in volumes, f"{place}: volumeMounts: Not found: {mount['name']!r}")
    _need(len(set(volumes)) == len(volumes), f"{place}: volumes: Duplicate value: {volumes}")
    for variable in script.get("env", ()):
        _need(ENV_NAME.fullmatch(variable["name"]), f"{place}: env: {variable['name']!r}")
        _need(not {"value", "valueFrom"} <= set(variable), f"{place}: env: may not have both")
    resources = script.get("resources", {})
    limits, requests = resources.get("limits", {}), resources.get("requests", {})
    for group in (limits, requests):
        for name, value in group.items():
            _need(QUANTITY.fullmatch(str(value)) or "{{" in str(value),
                  f"{place}: quantities must match the regular expression: {value!r}")  # fmt: skip
            if "/" in name:
                _need(str(value).isdigit(), f"{place}: {name}: must be an integer")
    for name in (n for n in limits if "/" in n and n in requests):
        _need(limits[name] == requests[name], f"{place}: {name}: must be equal to limit")
    for name in set(limits) & set(requests):
        _need(amount(requests[name]) <= amount(limits[name]),
              f"{place}: requests: {name}: must be less than or equal to limit")  # fmt: skip


def amount(quantity: Any) -> float:
    """Return a quantity such as 16Gi as a number."""
    match = QUANTITY.fullmatch(str(quantity))
    _need(match, f"no quantity: {quantity!r}")
    suffix = match[3] or ""
    if suffix[:1] in ("e", "E") and len(suffix) > 1 and suffix != "Ei":
        return float(str(quantity))
    scale = {"": 1.0, "m": 1e-3, "k": 1e3}
    for power, letter in enumerate("KMGTPE", 1):
        scale[f"{letter}i"], scale[letter] = 1024.0**power, 1000.0**power
    return float(match[1]) * scale[suffix]


def _retry(place: str, strategy: Mapping[str, Any]) -> None:
    limit = strategy.get("limit")
    _need(limit is None or str(limit).isdigit(), f"{place}.limit: {limit!r}")
    _need(strategy.get("retryPolicy", "Always") in POLICIES, f"{place}.retryPolicy")
    backoff = strategy.get("backoff", {})
    _need(not backoff or backoff.get("duration"), f"{place}: no base duration specified")
    for name in ("duration", "cap", "maxDuration"):
        _need(DURATION.fullmatch(backoff.get(name, "1")), f"{place}.backoff.{name}: invalid")
    _need(str(backoff.get("factor", 1)).isdigit(), f"{place}.backoff.factor: {backoff}")
    try:
        if "expression" in strategy:
            Parser(strategy["expression"]).parse()
    except ExpressionError as error:
        raise Refused(f"{place}.expression: {error}") from error


def _dag(place: str, template: Mapping[str, Any], templates: Mapping[str, Any]) -> None:
    tasks = {task["name"]: task for task in template["dag"]["tasks"]}
    _need(len(tasks) == len(template["dag"]["tasks"]), f"{place}: task names are not unique")
    before: dict[str, set[str]] = {}
    for name, task in tasks.items():
        spot = f"{place}.tasks.{name}"
        _supported("task", task, spot)
        _need(re.fullmatch(r"[A-Za-z0-9][-\w]*", name), f"{spot}: invalid name")
        _need(not name[0].isdigit(), f"{spot}: may not begin with a digit")
        _need(task.get("template") in templates, f"{spot}: template {task.get('template')!r}")
        before[name] = depends_of(task, spot).tasks
        _need(before[name] <= set(tasks), f"{spot}: depends on {before[name] - set(tasks)}")
    ancestors = _ancestors(place, before)
    for name, task in tasks.items():
        spot = f"{place}.tasks.{name}"
        _arguments(spot, task, templates[task["template"]])
        for match in filter(None, map(TASK_OUTPUT.fullmatch, tags(task.get("arguments", {})))):
            source, kind, item = match[1], match[2], match[3]
            problem = f"{spot}: failed to resolve {{{{{match[0]}}}}}"
            _need(source in ancestors[name], f"{problem}: {source} is no ancestor")
            declared = _declared(templates[tasks[source]["template"]], kind) if kind else ()
            _need(not kind or item in declared, problem)


def depends_of(task: Mapping[str, Any], place: str = "") -> Depends:
    """Return what a task depends on."""
    listed = task.get("dependencies", [])
    _need(not (listed and task.get("depends")), f"{place}: both depends and dependencies")
    try:
        return Depends(task.get("depends", "") or " && ".join(listed))
    except ExpressionError as error:
        raise Refused(f"{place}: {error}") from error


def _declared(template: Mapping[str, Any], kind: str) -> set[str]:
    return {item["name"] for item in template.get("outputs", {}).get(kind, ())}


def _ancestors(place: str, before: Mapping[str, set[str]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}

    def collect(name: str, way: tuple[str, ...]) -> set[str]:
        _need(name not in way, f"{place}: dependency cycle: {' -> '.join((*way, name))}")
        if name not in found:
            above = [collect(parent, (*way, name)) for parent in before[name]]
            found[name] = before[name].union(*above)
        return found[name]

    for name in before:
        collect(name, ())
    return found


def _arguments(place: str, task: Mapping[str, Any], template: Mapping[str, Any]) -> None:
    for kind in ("parameters", "artifacts"):
        given = {a["name"] for a in task.get("arguments", {}).get(kind, ())}
        declared = {i["name"]: i for i in template.get("inputs", {}).get(kind, ())}
        for name, item in declared.items():
            served = {"value", "default", "valueFrom", "s3", "raw"} & set(item)
            _need(name in given or served or item.get("optional"),
                  f"{place}: input {kind[:-1]} {name!r} was not supplied")  # fmt: skip


def _variables(place: str, template: Mapping[str, Any], arguments: set[str]) -> None:
    own = {
        f"inputs.{kind}.{item['name']}{end}"
        for kind in ("parameters", "artifacts")
        for item in template.get("inputs", {}).get(kind, ())
        for end in ("", ".path")
    }
    own |= {f"outputs.{kind}.{name}.path" for kind in ("parameters", "artifacts")
            for name in _declared(template, kind)}  # fmt: skip
    for tag in tags(template):
        if not tag.startswith(KNOWN) or tag in own:
            continue
        _need(GLOBAL.fullmatch(tag) or ("dag" in template and TASK_OUTPUT.fullmatch(tag)),
              f"{place}: failed to resolve {{{{{tag}}}}}")  # fmt: skip
        if tag.startswith("workflow.parameters."):
            _need(tag.removeprefix("workflow.parameters.") in arguments,
                  f"{place}: failed to resolve {{{{{tag}}}}}")  # fmt: skip
