"""Whether images can be pulled, as far as that can be asked without a password."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from workflows.backends.argo.preflight.kube import Kube, KubeError, NotAllowed, ask
from workflows.backends.argo.scene import Scene
from workflows.doctor import Check

REFERENCE = re.compile(
    r"(?:(?P<registry>localhost(?::\d+)?|[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+(?::\d+)?"
    r"|[A-Za-z0-9-]+:\d+)/)?"
    r"(?P<path>[a-z0-9]+(?:(?:[._-]|__)+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
MANIFESTS = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
DOCKER = "docker.io"
HOSTS = {DOCKER: "registry-1.docker.io"}
TIMEOUT = 4.0
LOAD = "kind load docker-image {image}  or  minikube image load {image}"


class Image(NamedTuple):
    """The parts of an image's name."""

    registry: str | None
    path: str
    reference: str

    @property
    def full(self) -> str:
        """The name as nodes list it."""
        registry = self.registry or DOCKER
        path = f"library/{self.path}" if registry == DOCKER and "/" not in self.path else self.path
        joint = "@" if self.reference.startswith("sha256:") else ":"
        return f"{registry}/{path}{joint}{self.reference}"

    @property
    def is_local(self) -> bool:
        """Whether no registry can be meant: docker names images so that were built here."""
        return self.registry == "localhost" or (self.registry is None and "/" not in self.path)


def parse_image(text: str) -> Image | None:
    """Return the parts of an image's name; None if it is none."""
    found = REFERENCE.fullmatch(text)
    if found is None or (found["tag"] or found["digest"]) is None:
        return None
    return Image(found["registry"], found["path"], found["digest"] or found["tag"])


def check_images(scene: Scene, kube: Kube | None) -> Iterator[Check]:
    """Look at every image of the pipeline: its name, the nodes, its registry."""
    needs = scene.needs()
    keys = {need.resources.image: f"cluster.resources.{need.entry}.image" for need in needs}
    names = {image: key for image, key in keys.items() if image is not None}
    if None in keys:
        names = {scene.cluster.image: "cluster.image"} | names
    for text, key in names.items():
        yield _check_image(text, key, scene, kube)


def _check_image(text: str, key: str, scene: Scene, kube: Kube | None) -> Check:
    name = f"image {text}"
    image = parse_image(text)
    if image is None:
        advice = f"write {key} as registry/name:tag, in small letters"
        return Check(name, "error", "is no name of an image with a tag", advice)
    if image.reference == "latest":
        advice = f"{key}: name a version; what latest means changes between two attempts"
        return Check(name, "error", "has the tag latest", advice)
    there = _on_nodes(image, kube)
    if there == "all":
        return Check(name, "ok", "is on every node")
    if image.is_local:
        return _loaded_only(name, text, key, scene, there)
    return _judge(name, key, scene, *_ask_registry(image))


def _loaded_only(name: str, text: str, key: str, scene: Scene, there: str) -> Check:
    """Judge an image without a registry, which somebody must have loaded into the nodes."""
    load = LOAD.format(image=text)
    if scene.cluster.image_pull_policy == "Always":
        advice = f"set cluster.image_pull_policy: IfNotPresent, or push it and name it in {key}"
        return Check(name, "error", "names no registry, so it cannot be pulled", advice)
    found = f"names no registry: pods start only where it has been loaded into the node ({there})"
    advice = f"{load}; or push it to a registry and name that in {key}"
    return Check(name, "warning", found, advice)


def _on_nodes(image: Image, kube: Kube | None) -> str:
    """Say on which nodes an image is; nodes list only some of their images."""
    if kube is None:
        return "not checked without a kubeconfig"
    try:
        nodes = ask(kube.core.list_node).items
    except (NotAllowed, KubeError):
        return "not checked: your kubeconfig may not list nodes"
    names = {image.full, image.full.replace(f"{DOCKER}/library/", "localhost/")}
    have = [
        node
        for node in nodes
        if any(names & set(item.names or ()) for item in node.status.images or ())
    ]
    if nodes and len(have) == len(nodes):
        return "all"
    return f"seen on {len(have)} of {len(nodes)} nodes"


def _judge(name: str, key: str, scene: Scene, status: int | None, said: str) -> Check:
    """Judge the answer of a registry."""
    if status == 200:
        return Check(name, "ok", f"can be pulled by everybody ({said})")
    if status == 404:
        advice = f"correct {key}, or push the image"
        return Check(name, "error", f"the registry has no such image or tag ({said})", advice)
    secrets = scene.cluster.image_pull_secrets
    if status in (401, 403) and secrets:
        found = f"cannot be asked: the registry wants a password ({', '.join(secrets)} has it)"
        return Check(name, "unknown", found, "the probe pulls it: --probe")
    if status in (401, 403):
        advice = (
            "if it is private, put the registry's password into a secret (kubectl create secret "
            "docker-registry) and name that in cluster.image_pull_secrets, unless the nodes may "
            f"pull it anyway (--probe shows it); if it does not exist, correct {key}"
        )
        return Check(name, "warning", "is private or does not exist", advice)
    return Check(name, "unknown", f"cannot be asked from here ({said})", "the probe pulls it")


def _ask_registry(image: Image) -> tuple[int | None, str]:
    """Ask for the manifest without a password; return the HTTP status, None without answer."""
    import urllib3

    registry = image.registry or DOCKER
    local = registry.partition(":")[0] in ("localhost", "127.0.0.1")
    path = image.full.removeprefix(f"{registry}/").rpartition(image.reference)[0][:-1]
    url = f"http{'' if local else 's'}://{HOSTS.get(registry, registry)}/v2/{path}/manifests/"
    pool = urllib3.PoolManager(timeout=TIMEOUT, retries=False)
    headers = {"Accept": MANIFESTS}
    try:
        answer = pool.request("HEAD", url + image.reference, headers=headers, redirect=False)
        token = _anonymous(pool, answer.headers, local) if answer.status == 401 else None
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
            answer = pool.request("HEAD", url + image.reference, headers=headers, redirect=False)
    except urllib3.exceptions.HTTPError as error:
        return None, f"{registry}: {type(error).__name__}"
    return answer.status, registry


def _anonymous(pool: Any, headers: Mapping[str, str], local: bool) -> str | None:
    """Return the token that a registry gives to everybody who asks; None if it gives none."""
    challenge = headers.get("WWW-Authenticate", "")
    fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    realm = fields.pop("realm", "")
    if not challenge.startswith("Bearer") or urlsplit(realm).scheme != (
        "http" if local else "https"
    ):
        return None
    wanted = {key: fields[key] for key in ("service", "scope") if key in fields}
    answer = pool.request("GET", realm, fields=wanted)
    if answer.status != 200:
        return None
    try:
        document = json.loads(answer.data)
        return str(document.get("token") or document["access_token"])
    except (ValueError, KeyError, AttributeError):
        return None
