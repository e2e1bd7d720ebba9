"""The Argo server: there, of a fitting version, and ready to take workflows from this user."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from workflows.backends.argo.client import OLDEST
from workflows.backends.argo.preflight.objects import SETUP
from workflows.backends.argo.scene import Scene
from workflows.backends.argo.transport import ServerError, Transport
from workflows.doctor import Check

NEWEST = (4, 1)
"""Latest version of Argo that its objects have been compared with."""
SOON = 3600
"""Seconds. A token that ends sooner is worth a warning."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
NOBODY = "dpaflow-no-such-workflow"


def check_server(scene: Scene, server: Transport) -> Iterator[Check]:
    """Ask for the version; without an answer say what is in the way."""
    try:
        found = server.json("GET", "/api/v1/version")
    except ServerError as error:
        if error.status not in (401, 403):
            yield Check("Argo server", "error", str(error))
            return
        found = {}  # check_token says more
    yield _encryption(scene)
    if "version" in found:
        yield judge_version(str(found["version"]))


def _encryption(scene: Scene) -> Check:
    context = scene.context
    local = urlsplit(context.server).hostname in LOOPBACK
    found = f"{context.server} answers"
    if not context.server.startswith("https") and not local:
        advice = "everybody on the way can read your token; use https"
        return Check("Argo server", "warning", f"{found}, unencrypted", advice)
    if context.server.startswith("https") and not context.verify:
        found += ", its certificate is not checked"
        if not local:
            advice = "somebody in between could read your token; set ca_file and verify: true"
            return Check("Argo server", "warning", found, advice)
    return Check("Argo server", "ok", found)


def judge_version(text: str) -> Check:
    """Compare a version with those we know."""
    parts = re.match(r"v?(\d+)\.(\d+)", text)
    if parts is None:
        found = f"{text}: not a release"
        return Check("Argo version", "warning", found, "nobody has tried this one")
    number = int(parts[1]), int(parts[2])
    wanted = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
    if number < OLDEST:
        advice = f"ask for {wanted}: older ones do not know what our workflows use"
        return Check("Argo version", "error", text, advice)
    if number > NEWEST:
        return Check("Argo version", "warning", f"{text}; known are {wanted}", "most likely fine")
    return Check("Argo version", "ok", text)


def check_token(scene: Scene, server: Transport) -> Iterator[Check]:
    """Ask the server whose token it is, and look when it ends."""
    token = scene.context.bearer()
    renew = (
        f"make a new one: kubectl -n {scene.context.namespace} create token dpaflow-user "
        "--duration 24h"
    )
    try:
        user = server.json("GET", "/api/v1/userinfo")
    except ServerError as error:
        yield Check("token", "unknown" if error.status == 403 else "error", str(error))
        return
    if token is None:
        advice = "fine on your own machine; a shared server should ask for a token"
        yield Check("token", "warning", "the server asks for none: everybody may submit", advice)
        return
    who = owner(user) or "somebody the server does not name"
    left = seconds_left(token)
    if left is not None and left < SOON:
        found = f"that of {who}, ends in {max(0, left) / 60:.0f} min"
        yield Check("token", "warning", found, renew)
        return
    ends = "" if left is None else f", ends in {left / 3600:.0f} h"
    yield Check("token", "ok", f"that of {who}{ends}")


def owner(user: Mapping[str, Any]) -> str:
    """Return a user's name."""
    if user.get("serviceAccountName"):
        space = user.get("serviceAccountNamespace")
        where = f" in {space}" if space else ""
        return f"service account {user['serviceAccountName']}{where}"
    return str(user.get("email") or user.get("name") or user.get("subject") or "")


def seconds_left(token: str) -> float | None:
    """Return how long a token holds, as it says itself; None if it does not say."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return float(claims["exp"]) - time.time()
    except (IndexError, ValueError, KeyError, TypeError):
        return None


def check_workflows(
    scene: Scene, server: Transport, manifest: Mapping[str, Any]
) -> Iterator[Check]:
    """Look, and try to submit: Argo and Kubernetes check a workflow without keeping it."""
    space = scene.context.namespace
    path = f"/api/v1/workflows/{space}"
    asked: tuple[tuple[str, str, str, dict[str, str], dict[str, Any] | None], ...] = (
        ("may list", "GET", path, {"listOptions.limit": "1"}, None),
        ("may read", "GET", f"{path}/{NOBODY}", {}, None),
        ("may submit", "POST", path, {},
         {"namespace": space, "serverDryRun": True, "workflow": manifest}),
    )  # fmt: skip
    for name, method, where, query, body in asked:
        try:
            server.json(method, where, query, body)
        except ServerError as error:
            missing = error.status == 404 and name == "may read"  # of course: nobody has this name
            if not missing:
                yield _refusal(name, error)
                continue
        tried = " (tried, nothing was kept)" if body else ""
        yield Check(name, "ok", f"workflows in {space}{tried}")


def _refusal(name: str, error: ServerError) -> Check:
    said = str(error)
    if error.status in (401, 403) and "admission" in said:
        return Check(name, "error", said, "a rule of this cluster is against it; show them this")
    if error.status in (401, 403):
        return Check(name, "error", said, SETUP)
    return Check(name, "error", said)
