"""One pod: its spec, its environment, its process, and what Kubernetes says of its end."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.argo_server.faults import BEFORE, Fault, kill_tree
from tests.argo_server.podspec import main_of
from tests.argo_server.storage import ArtifactError, Store, key_of, load, save

LEAKS = ("PATH", "PYTHONPATH", "HOME")
"""Variables that a pod gets from here, as if they were the image's."""
HOME = "/dpaflow"
SYSTEM = ("/tmp", "/dev")
"""Folders of a pod that stay where they are here."""
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
TICK = 0.02


@dataclass
class Ended:
    """How a pod ended: phase and message of its node, and its outputs."""

    phase: str
    message: str = ""
    exit_code: int | None = None
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    parameters: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Cluster:
    """What pods find around them.

    Attributes
    ----------
    root
        Folder for the files of pods and the volumes they claim.
    store
        The artifact repository.
    secrets
        Secrets and ConfigMaps by name.
    accounts
        Token of every service account.
    environment
        Variables that Kubernetes gives every pod: where its own API is.
    authority
        Certificate of that API.
    faults
        What is to go wrong.
    """

    root: Path
    store: Store
    secrets: dict[str, dict[str, str]] = field(default_factory=dict)
    accounts: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    authority: str = ""
    faults: list[Fault] = field(default_factory=list)


@dataclass
class Pod:
    """A pod of a step's attempt."""

    name: str
    shown: str
    template: dict[str, Any]
    spec: dict[str, Any]
    key: str
    """Where artifacts without a key of their own go."""
    cluster: Cluster
    deadline: float | None = None
    """Moment, by time.monotonic, at which it is ended."""
    process: subprocess.Popen[bytes] | None = None
    stopped: threading.Event = field(default_factory=threading.Event)
    removed: bool = False

    @property
    def root(self) -> Path:
        """Folder that holds all that the pod sees."""
        return self.cluster.root / "pods" / self.name

    @property
    def log(self) -> Path:
        return self.root / "main.log"

    def run(self, pending: Callable[[str], None]) -> Ended:
        """Do all that happens to a pod; `pending` is told why it does not start."""
        self.root.mkdir(parents=True)
        if (ended := self._wait_for_node(pending)) is not None:
            return ended
        try:
            for artifact in self.template.get("inputs", {}).get("artifacts", ()):
                load(artifact, self.place(artifact["path"]), self.cluster.store)
        except ArtifactError as error:
            return Ended("Error", f"init: Error (exit code 64): {error}")
        pending("")
        forced = self._execute()
        if forced in ("delete", "evict"):
            return _lost(forced)
        code = self.process.wait() if self.process else 1
        return self._finish(128 - code if code < 0 else code, oom=forced == "oom",
                            late=forced == "deadline")  # fmt: skip

    def place(self, path: str) -> Path:
        """Return where here is what the pod sees as `path`."""
        return self.root / "files" / path.lstrip("/")

    def _wait_for_node(self, pending: Callable[[str], None]) -> Ended | None:
        while reason := self._cannot_start():
            pending(reason)
            if self.stopped.wait(TICK):
                return Ended("Failed", "workflow shutdown")
            if self.deadline is not None and time.monotonic() > self.deadline:
                # a pod that never ran has no containers that ended
                return Ended(
                    "Failed", "Pod was active on the node longer than the specified deadline"
                )
        return None

    def _cannot_start(self) -> str:
        main = main_of(self.spec)
        for fault in self.cluster.faults:
            if fault.kind in BEFORE and fault.meets(self.shown, self.spec):
                fault.note(self.shown)
                if fault.kind == "image":
                    return f'ImagePullBackOff: Back-off pulling image "{main["image"]}"'
                gpu = [n for n in main.get("resources", {}).get("limits", {}) if "/" in n]
                missing = gpu[0] if gpu else "memory"
                return (f"Unschedulable: 0/3 nodes are available: 3 Insufficient {missing}. "
                        "preemption: 0/3 nodes are available: 3 No preemption victims found for "
                        "incoming pod.")  # fmt: skip
        try:
            self._environment()
        except KeyError as error:
            return f"CreateContainerConfigError: {error.args[0]}"
        return ""

    def _environment(self) -> dict[str, str]:
        main = main_of(self.spec)
        found = {name: os.environ[name] for name in LEAKS if name in os.environ}
        for source in main.get("envFrom", ()):
            reference = source.get("secretRef") or source.get("configMapRef")
            values = self.cluster.secrets.get(reference["name"])
            if values is None and not reference.get("optional"):
                raise KeyError(f'secret "{reference["name"]}" not found')
            found |= {f"{source.get('prefix', '')}{k}": v for k, v in (values or {}).items()}
        for variable in main.get("env", ()):
            value = self._env_value(variable)
            if value is not None:
                found[variable["name"]] = re.sub(
                    r"\$\((\w+)\)", lambda m: found.get(m[1], m[0]), value
                )
        found = {name: self._moved(value) for name, value in found.items()}
        return found | self._contract(found)

    def _contract(self, found: Mapping[str, str]) -> dict[str, str]:
        """Folders that the image has at places where they cannot be here."""
        given = {
            "DPAFLOW_IN": str(self.place(f"{HOME}/in")),
            "DPAFLOW_WORK": str(self.place(f"{HOME}/work")),
            "DPAFLOW_ACCOUNT": str(self.place(ACCOUNT)),
            **self.cluster.environment,
        }
        path = main_of(self.spec).get("terminationMessagePath", "/dev/termination-log")
        return {**{n: v for n, v in given.items() if n not in found},
                "DPAFLOW_TERMINATION_LOG": str(self.place(path))}  # fmt: skip

    def _env_value(self, variable: Mapping[str, Any]) -> str | None:
        source = variable.get("valueFrom")
        if source is None:
            return str(variable.get("value", ""))
        if reference := source.get("secretKeyRef") or source.get("configMapKeyRef"):
            try:
                return self.cluster.secrets[reference["name"]][reference["key"]]
            except KeyError:
                if reference.get("optional"):
                    return None
                if reference["name"] in self.cluster.secrets:
                    raise KeyError(f"couldn't find key {reference['key']} in Secret "
                                   f"{reference['name']}") from None  # fmt: skip
                raise KeyError(f'secret "{reference["name"]}" not found') from None
        path = source.get("fieldRef", {}).get("fieldPath", "")
        return {"metadata.name": self.name, "spec.nodeName": "stub-node"}.get(path, "")

    def _moved(self, value: str) -> str:
        """Turn a path that the pod sees into one that is there."""
        mounts = [m["mountPath"] for m in main_of(self.spec).get("volumeMounts", ())]
        for prefix in sorted({HOME, *mounts}, key=len, reverse=True):
            inside = value == prefix or value.startswith(f"{prefix.rstrip('/')}/")
            if inside and not prefix.startswith(SYSTEM):
                return str(self.place(value))
        return value

    def _execute(self) -> str:
        """Run the script; return what ended it by force, if anything did."""
        self._mount()
        script = self.place("/argo/staging/script")
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(self.template["script"]["source"], encoding="utf-8")
        main = main_of(self.spec)
        command = [*main["command"], *main.get("args", ()), str(script)]
        if command[0] in ("python", "python3"):
            command[0] = sys.executable
        environment = self._environment()
        Path(environment["DPAFLOW_TERMINATION_LOG"]).parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=self.root, env=environment, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        return self._watch(time.monotonic())

    def _mount(self) -> None:
        volumes = {v["name"]: v for v in self.spec.get("volumes", ())}
        for mount in main_of(self.spec).get("volumeMounts", ()):
            path, volume = self.place(mount["mountPath"]), volumes[mount["name"]]
            path.parent.mkdir(parents=True, exist_ok=True)
            if claim := volume.get("persistentVolumeClaim"):
                source = (
                    self.cluster.root / "claims" / claim["claimName"] / mount.get("subPath", "")
                )
                source.mkdir(parents=True, exist_ok=True)
                path.symlink_to(source)
                continue
            path.mkdir(parents=True, exist_ok=True)
            if secret := volume.get("secret"):
                _write(path, self.cluster.secrets.get(secret["secretName"], {}))
        if self.spec.get("automountServiceAccountToken", True):
            account = self.spec.get("serviceAccountName", "default")
            _write(self.place(ACCOUNT), {
                "token": self.cluster.accounts.get(account, ""), "namespace": "dpaflow",
                "ca.crt": self.cluster.authority,
            })  # fmt: skip

    def _watch(self, begin: float) -> str:
        process = self.process
        if process is None:
            return ""
        told = 0.0
        while process.poll() is None:
            now = time.monotonic()
            for fault in self.cluster.faults:
                if fault.kind not in BEFORE and self._due(fault, now - begin):
                    fault.note(self.shown)
                    kill_tree(process.pid)
                    process.wait()
                    return fault.kind
            late = self.deadline is not None and now > self.deadline
            if (self.stopped.is_set() or late) and not told:
                told = now
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
            if told and now > told + self.spec.get("terminationGracePeriodSeconds", 30):
                kill_tree(process.pid)
            time.sleep(TICK)
        kill_tree(process.pid)
        return "deadline" if told and not self.stopped.is_set() else ""

    def _due(self, fault: Fault, elapsed: float) -> bool:
        if self.shown in fault.hit or not fault.meets(self.shown, self.spec):
            return False
        if fault.when is not None:
            return any(self.place("/").rglob(fault.when))
        return elapsed >= fault.after

    def _finish(self, code: int, *, oom: bool, late: bool) -> Ended:
        """Save outputs, of failed pods too, and say how the pod ended."""
        ended = Ended("Succeeded", exit_code=code)
        problems = []
        for artifact in self.template.get("outputs", {}).get("artifacts", ()):
            key = key_of(artifact, self.key)
            try:
                if save(artifact, self.place(artifact["path"]), key, self.cluster.store):
                    ended.artifacts.append(
                        {**artifact, "s3": {**artifact.get("s3", {}), "key": key}}
                    )
            except ArtifactError as error:
                problems.append(str(error))
        for parameter in self.template.get("outputs", {}).get("parameters", ()):
            path = self.place(parameter["valueFrom"]["path"])
            value = parameter["valueFrom"].get("default")
            if path.is_file():
                value = path.read_text(encoding="utf-8").removesuffix("\n")
            if value is None:
                problems.append(f"cannot save parameter {parameter['name']}: no such file")
                continue
            ended.parameters.append({**parameter, "value": value})
        if late:
            ended.phase = "Failed"
            ended.message = "Pod was active on the node longer than the specified deadline"
        elif code:
            reason = "OOMKilled" if oom else "Error"
            text = self._termination()
            ended.phase = "Failed"
            ended.message = f"main: {reason} (exit code {code})" + (f": {text}" if text else "")
        elif problems:
            ended.phase, ended.message = (
                "Error",
                f"wait: Error (exit code 64): {'; '.join(problems)}",
            )
        return ended

    def _termination(self) -> str:
        main = main_of(self.spec)
        path = self.place(main.get("terminationMessagePath", "/dev/termination-log"))
        if path.is_file() and (text := path.read_text(encoding="utf-8", errors="replace")):
            return text.encode()[:4096].decode(errors="ignore")
        if main.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            return self.log.read_text(errors="replace")[-2048:]
        return ""

    def clean(self) -> None:
        """Forget the files of a pod that has been deleted."""
        self.removed = True
        shutil.rmtree(self.root, ignore_errors=True)


def _write(folder: Path, files: Mapping[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def _lost(kind: str) -> Ended:
    if kind == "evict":
        return Ended("Failed", "The node was low on resource: memory. Threshold quantity: 100Mi, "
                     "available: 12Mi. Container main was using 9Gi, request is 8Gi.")  # fmt: skip
    return Ended("Error", "pod deleted")
