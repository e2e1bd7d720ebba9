"""The last step of an iteration: `python -m workflows.backends.argo.advance REQUEST.json`.

Reads what was decided, plans what follows (the next iteration, or the final models and the
report) and submits it as the next workflow of the run. It talks to the Kubernetes API with
the token of its own service account, which may read and create workflows and nothing else.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpa_core.errors import ConfigError, DPAError
from ops.pod import report_failure, require_version
from workflows.backends.argo.render import render
from workflows.backends.argo.run import STATE, Run, load_run, plan_run
from workflows.revisions import advanced

ACCOUNT, ACCOUNT_VARIABLE = "/var/run/secrets/kubernetes.io/serviceaccount", "DPAFLOW_ACCOUNT"
"""Folder with token, ca.crt and namespace of the pod's account, and the variable to move it."""
GROUP = ("argoproj.io", "v1alpha1")
EXISTS = 409
HANDED_ON = ("workflows.argoproj.io/controller-instanceid", "workflows.argoproj.io/creator")
REFUSED = (401, 403, 422)
"""Another attempt would get the same answer."""


def main() -> int:
    """Submit the next workflow and return the exit code of a pod."""
    try:
        request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        server = Server()
        workflow = server.get(request["workflow"])
        require_version(_version(workflow))
        follower = following(load_run(workflow), request["decision"])
        follower["metadata"]["labels"] |= _handed_on(workflow)
        if server.get(request["workflow"])["spec"].get("shutdown"):
            return report_failure("interrupted", "the workflow is being stopped, so none follows")
        server.create(follower)
    except DPAError as error:
        return report_failure("config" if error.exit_code == 2 else "fatal", str(error))
    except (OSError, ServerError) as error:
        return report_failure("transient", str(error))
    sys.stdout.write(f"submitted {follower['metadata']['name']}\n")
    return 0


def following(run: Run, decision: dict[str, Any]) -> dict[str, Any]:
    """Return the workflow that follows a decision.

    Parameters
    ----------
    run
        The run, as the workflow that ends now carries it.
    decision
        The result of its deciding step, see `ops.decide.brief`.
    """
    _, done = plan_run(run)
    progress = advanced(run.progress, decision)
    return render(replace(run, progress=progress, sequence=run.sequence + 1), done)


def _version(workflow: dict[str, Any]) -> str:
    """Return the version of dpaflow that made a workflow: another one would plan other steps."""
    values = {p["name"]: p.get("value") for p in workflow["spec"]["arguments"]["parameters"]}
    return str(json.loads(values[STATE])["version"])


def _handed_on(workflow: dict[str, Any]) -> dict[str, str]:
    """Return labels that an Argo server adds: whose workflow it is, and which controller's."""
    labels = workflow["metadata"].get("labels") or {}
    return {name: value for name, value in labels.items() if name.startswith(HANDED_ON)}


class ServerError(Exception):
    """The Kubernetes API did not do what it was asked to; perhaps next time."""


class Server:
    """Workflows in the namespace of this pod."""

    def __init__(self) -> None:
        from kubernetes import client
        from kubernetes.config.config_exception import ConfigException
        from kubernetes.config.incluster_config import InClusterConfigLoader

        place = Path(os.environ.get(ACCOUNT_VARIABLE, ACCOUNT))
        settings = client.Configuration()
        loader = InClusterConfigLoader(str(place / "token"), str(place / "ca.crt"))
        try:
            loader.load_and_set(settings)
        except ConfigException as error:
            raise ConfigError(
                f"`advance` has no token of the cluster ({error}); see "
                "cluster.advance_service_account"
            ) from error
        self.namespace = (place / "namespace").read_text(encoding="utf-8").strip()
        self.api = client.CustomObjectsApi(client.ApiClient(settings))

    def get(self, name: str) -> dict[str, Any]:
        """Return a workflow."""
        with _plain_errors("read", name):
            place = (*GROUP, self.namespace, "workflows", name)
            found: dict[str, Any] = self.api.get_namespaced_custom_object(*place)
        return found

    def create(self, manifest: dict[str, Any]) -> None:
        """Submit a workflow; the same may be there from an earlier attempt."""
        from kubernetes.client.exceptions import ApiException

        name = manifest["metadata"]["name"]
        place = (*GROUP, self.namespace, "workflows")
        with _plain_errors("create", name):
            try:
                self.api.create_namespaced_custom_object(*place, manifest)
                return
            except ApiException as error:
                if error.status != EXISTS:
                    raise
        if self.get(name)["spec"].get("arguments") != manifest["spec"]["arguments"]:
            raise ConfigError(
                f"workflow {name} is there already, with other settings: somebody went on with the "
                "run in another way; see `dpaflow status`"
            )


@contextmanager
def _plain_errors(action: str, name: str) -> Iterator[None]:
    """Translate what the Kubernetes API, or the way to it, does not do."""
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        if error.status in REFUSED:
            raise _not_allowed(action, name, error) from error
        raise ServerError(f"cannot {action} workflow {name}: {_text(error)}") from error
    except HTTPError as error:
        raise ServerError(f"cannot {action} workflow {name}: {error}") from error


def _not_allowed(action: str, name: str, error: Any) -> ConfigError:
    return ConfigError(
        f"the service account of `advance` may not {action} workflow {name}: {_text(error)}; see "
        "cluster.advance_service_account"
    )


def _text(error: Any) -> str:
    return f"{error.status} {error.reason}"


if __name__ == "__main__":
    sys.exit(main())
