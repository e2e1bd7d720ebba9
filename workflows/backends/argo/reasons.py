"""Why a step of a workflow failed or does not start, in one line, and what to do about it.

Argo passes on what Kubernetes says about a pod; its wording is known here, and only here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ops.base import Kind
from ops.pod import EXIT_CODES

NodeStatus = Mapping[str, Any]
IMAGE = r"ErrImagePull|ImagePullBackOff|InvalidImageName|ErrImageNeverPull|ImageInspectError"
RULES: tuple[tuple[str, str], ...] = (
    ("image", IMAGE + r"|[Ff]ailed to pull image"),
    ("unschedulable", r"Unschedulable|nodes are available"),
    ("quota", r"exceeded quota|forbidden: .*quota"),
    ("forbidden", r"violates PodSecurity|pods .* is forbidden|serviceaccounts? .*not found"),
    ("container", r"CreateContainer(Config)?Error|RunContainerError|StartError|CrashLoopBackOff"),
    ("oom", r"OOMKilled"),
    ("deadline", r"DeadlineExceeded|longer than the specified deadline|exceeded its deadline"
                 r"|Max duration limit exceeded"),
    ("stopped", r"workflow shutdown|[Ss]topped with strategy|shutdown with strategy"),
    ("evicted", r"[Ee]victed|low on resource|[Pp]reempt|exceeds the total limit of containers"
                r"|ephemeral local storage usage exceeds|[Uu]sage of EmptyDir volume"),
    ("lost", r"node shutdown|NodeShutdown|NodeLost|Node .*(not ready|unreachable)|pod deleted"
             r"|Terminated in response to imminent|TaintManager|node is shutting down"),
    ("artifact", r"^(init|wait): |artifact .*(failed|not found|does not exist)|NoSuchKey"
                 r"|[Ff]ailed to (put|get)|NoSuchBucket|AccessDenied|specified key does not exist"
                 r"|SignatureDoesNotMatch|InvalidAccessKeyId|save outputs|not found in artifact"),
)  # fmt: skip
"""Kind -> pattern in the message; the first that fits counts."""
EXITS = {code: kind for kind, code in EXIT_CODES.items()}
KINDS: Mapping[str, Kind] = {
    "oom": "killed", "deadline": "timeout", "stopped": "interrupted", "evicted": "transient",
    "lost": "transient", "artifact": "transient", "paused": "paused", "config": "config",
    "transient": "transient", "timeout": "timeout", "killed": "killed",
    "interrupted": "interrupted",
}  # fmt: skip
"""What kind of failure of a local run it corresponds to; "fatal" for the rest."""
ADVICE = {
    "config": "put it right in the pipeline file or the data and `dpaflow submit` it again, what "
              "is finished is kept; or change a setting: --from {key} --set KEY=VALUE",
    "image": "check cluster.image (name and tag); a private registry needs "
             "cluster.image_pull_secrets. `dpaflow doctor --cluster` tries the image",
    "unschedulable": "it starts by itself once a node is free; if no node ever fits, ask for less "
                     "or for another node: cluster.resources.{op} (gpu, cpu, memory, gpu_type, "
                     "node_selector, tolerations). `dpaflow doctor --cluster` lists the nodes",
    "quota": "the namespace's quota is used up: wait for other pods, lower cluster.parallelism or "
             "cluster.resources.{op}, or ask your administrator",
    "forbidden": "the cluster does not allow this pod; show the line above to your administrator "
                 "(`dpaflow doctor --cluster` says what is missing)",
    "container": "a Secret or volume it names is missing, or the image has no dpaflow: check "
                 "cluster.storage.secret, cluster.volumes and cluster.image",
    "oom": "give it more, e.g. --from {key} --set cluster.resources.{op}.memory=SIZE (or "
           "max_memory for later attempts), or use smaller batches",
    "killed": "most often it is memory: --from {key} --set cluster.resources.{op}.memory=SIZE, or "
              "smaller batches",
    "deadline": "give it more time: --from {key} --set cluster.resources.{op}.timeout=6h (for the "
                "whole workflow cluster.deadline); a training goes on from its checkpoint if "
                "cluster.workspace is set",
    "timeout": "give it more time: --from {key} --set cluster.resources.{op}.timeout=6h; a "
               "training goes on from its checkpoint if cluster.workspace is set",
    "evicted": "its node ran out of memory or disk, or was needed for something more important: "
               "resume; for a full disk raise cluster.resources.{op}.disk",
    "lost": "its node went away: resume; if it happens often, raise cluster.resources.{op}.retries",
    "artifact": "results could not be read from or written to the bucket: "
                "`dpaflow doctor --cluster` checks cluster.storage, its Secret and the repository",
    "transient": "reading or writing failed: resume; raise cluster.resources.{op}.retries if it "
                 "happens often",
}  # fmt: skip
PREFIX = re.compile(r"^(?:main: )?(?:Error|OOMKilled|Unknown|Completed) \(exit code (-?\d+)\):? ?")
FOREIGN = re.compile(r"^(init|wait): |OOMKilled")
"""Exit codes and texts of these are not those of `ops.pod`."""
CODE = re.compile(r"exit code:? (-?\d+)")
MAX_LINE = 300


def exit_code(node: NodeStatus) -> int | None:
    """Return the exit code of a pod, as far as Argo knows it."""
    told = (node.get("outputs") or {}).get("exitCode")
    if told is None:
        found = CODE.search(str(node.get("message") or ""))
        told = found[1] if found else None
    try:
        return None if told is None else int(told)
    except ValueError:
        return None


def own_text(node: NodeStatus, message: str | None = None) -> str:
    """Return what our step itself said, without what Argo and `ops.pod` put before it."""
    text = str(node.get("message") or "") if message is None else message
    return PREFIX.sub("", text).strip().removeprefix(f"{node.get('templateName')}: ")


def explain(node: NodeStatus, workflow: Mapping[str, Any]) -> tuple[str, str]:
    """Return what kind of trouble a node's status tells of, and one line to say it.

    Parameters
    ----------
    node
        A node of `status.nodes`, of type Pod: failed, or pending with a message.
    workflow
        Its workflow, for what the step asked for.

    Returns
    -------
    tuple[str, str]
        A key of `ADVICE`, "config", "fatal", "stopped", "paused" or "" (nothing is wrong);
        and the line.
    """
    message = " ".join(str(node.get("message") or "").split())
    code = exit_code(node)
    own = own_text(node, message)
    if code in EXITS and own and not FOREIGN.search(message):
        return EXITS[code], _short(own)
    for kind, pattern in RULES:
        if re.search(pattern, message):
            return kind, _short(_line(kind, message, node, workflow))
    if node.get("phase") in ("Pending", "Running"):
        return "", _short(message)
    if code in EXITS:
        return EXITS[code], _without_text(EXITS[code], code)
    if code is not None:
        return "fatal", _short(own or f"ended with exit code {code} and no message; see the log")
    return "fatal", _short(message or "no reason given")


def _line(kind: str, message: str, node: NodeStatus, workflow: Mapping[str, Any]) -> str:
    """Say a known kind of trouble in plain words, with what the cluster says where it helps."""
    own = own_text(node, message)
    if kind == "image":
        image = re.search(r'image "?([^\s":]+(?::[^\s":]+)?)', message)
        name = image[1] if image else _template(workflow, node).get("image", "")
        return f"image {name} cannot be pulled: {_tail(message)}"
    if kind == "unschedulable":
        said = re.split(r"\.? preemption:", message.partition("available: ")[2] or _tail(message))
        return f"no node can take it: {said[0]}; asked for {_asked(node, workflow)}"
    if kind == "oom":
        limit = _memory(node, workflow)
        return f"out of memory{f': the limit was {limit}' if limit else ''}"
    if kind == "deadline":
        seconds = _template(workflow, node, script=False).get("activeDeadlineSeconds")
        return f"longer than allowed{f' ({seconds} s)' if seconds else ''}: {own}"
    titles = {"quota": "no quota left", "forbidden": "the cluster refuses the pod",
              "container": "the container cannot start", "stopped": "stopped on request",
              "evicted": "its node threw it out", "lost": "its node or pod went away",
              "artifact": "data could not be fetched or stored"}  # fmt: skip
    return f"{titles[kind]}: {own}"


def _without_text(kind: str, code: int) -> str:
    told = {"config": "a setting or the data are wrong; see the log",
            "killed": "killed, most often because memory ran out",
            "interrupted": "was told to stop", "timeout": "longer than allowed",
            "paused": "waits for you; see the log"}  # fmt: skip
    return told.get(kind, f"ended with exit code {code} and no message; see the log")


def _asked(node: NodeStatus, workflow: Mapping[str, Any]) -> str:
    """Return what a step wants of a node: resources, GPUs first, and labels."""
    limits = (_template(workflow, node).get("resources") or {}).get("limits") or {}
    names = sorted(limits, key=lambda name: "/" not in name)
    parts = [f"{limits[name]} {name}" for name in names if name != "ephemeral-storage"]
    labels = _template(workflow, node, script=False).get("nodeSelector") or {}
    return ", ".join([*parts, *(f"{k}={v}" for k, v in labels.items())]) or "nothing special"


def _memory(node: NodeStatus, workflow: Mapping[str, Any]) -> str:
    """Return the memory of a pod: later attempts get more, see `harden._grow_memory`."""
    patch = str(_template(workflow, node, script=False).get("podSpecPatch") or "")
    attempt = re.search(r"\((\d+)\)$", str(node.get("displayName") or ""))
    steps: dict[str, str] = dict(re.findall(r"asInt\(retries\) == (\d+) \? (\d+)", patch))
    last = re.search(r": (\d+)\}\}Mi", patch)
    if attempt and last:
        mebi = int(steps.get(str(attempt[1]), str(last[1])))
        return f"{mebi // 1024}Gi" if mebi % 1024 == 0 else f"{mebi}Mi"
    limits = (_template(workflow, node).get("resources") or {}).get("limits") or {}
    return str(limits.get("memory", ""))


def _template(
    workflow: Mapping[str, Any], node: NodeStatus, *, script: bool = True
) -> Mapping[str, Any]:
    for template in workflow.get("spec", {}).get("templates") or []:
        if template.get("name") == node.get("templateName"):
            found: Mapping[str, Any] = template
            return (template.get("script") or template.get("container") or {}) if script else found
    return {}


def _tail(message: str) -> str:
    return message.partition(": ")[2] or message


def _short(text: str) -> str:
    return text if len(text) <= MAX_LINE else f"{text[: MAX_LINE - 1]}…"


def advise(kind: str, key: str, op: str) -> str:
    """Return what to do about a kind of trouble with a step; "" if its own text says it."""
    return ADVICE.get(kind, "").format(key=key, op=op)
