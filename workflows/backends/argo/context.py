"""Where the Argo server is, and who asks: a context file, the environment, no secrets in either.

server: https://argo.example.org:2746      # default: https://localhost:2746
namespace: dpaflow
token_file: ~/.config/dpaflow/token        # or the variable ARGO_TOKEN
ca_file: ~/.config/dpaflow/ca.crt          # if the certificate is not publicly signed
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic
from pydantic import Field, SecretStr

from dpa_core.config import Config, parse_config
from dpa_core.errors import ConfigError
from dpa_core.yaml_file import read_yaml

CONTEXT = "DPAFLOW_CONTEXT"
DEFAULT = Path("~/.config/dpaflow/context.yaml")
VARIABLES = {
    "server": "ARGO_SERVER", "namespace": "ARGO_NAMESPACE", "token": "ARGO_TOKEN",
    "ca_file": "ARGO_CA_FILE", "kubeconfig": "KUBECONFIG",
}  # fmt: skip
"""Setting -> environment variable that overrides it."""
FALSE = ("", "0", "false", "no", "off")


class Context(Config):
    """An Argo server and how to talk to it."""

    server: str = Field(
        "https://localhost:2746", pattern=r"^https?://[^/@\s]+(/[^\s?#]*)?$",
        examples=["https://argo.example.org:2746"],
    )  # fmt: skip
    """Address of the Argo server; the default is where `kubectl port-forward` puts it."""
    namespace: str = Field(
        "dpaflow", pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$", examples=["dpaflow"]
    )
    """Namespace of the workflows."""
    token: SecretStr | None = Field(None, exclude=True, repr=False)
    """From the environment variable ARGO_TOKEN only; not allowed in a context file."""
    token_file: Path | None = None
    """File with the token; read anew for every request, as such tokens are renewed."""
    ca_file: Path | None = None
    """Certificates (PEM) to trust instead of the public ones."""
    verify: bool = True
    """Whether the server's certificate is checked."""
    ui: str | None = Field(
        None, pattern=r"^https?://[^@\s]+$", examples=["https://argo.example.org"]
    )
    """Address of the dashboard; that of the server when left out."""
    kubeconfig: Path | None = None
    """kubeconfig for the checks that ask Kubernetes itself; kubectl's when left out."""
    kube_context: str | None = None
    """Context of the kubeconfig; the current one when left out."""

    @pydantic.field_validator("server")
    @classmethod
    def _no_slash(cls, value: str) -> str:
        return value.rstrip("/")

    @pydantic.field_validator("token_file", "ca_file", "kubeconfig")
    @classmethod
    def _home(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser()

    def bearer(self) -> str | None:
        """Return the token without "Bearer", None if there is none.

        Raises
        ------
        ConfigError
            If the token's file cannot be read, or what is there cannot be a token.
        """
        if self.token is not None:
            found, source = self.token.get_secret_value(), VARIABLES["token"]
        elif self.token_file is not None:
            found, source = _read(self.token_file), str(self.token_file)
        else:
            return None
        found = found.strip().removeprefix("Bearer").strip()
        if not found:
            return None
        if not found.isascii() or len(found.split()) > 1:
            raise ConfigError(f"{source}: that is no token: it must be one word of ASCII letters")
        return found

    def dashboard(self, workflow: str) -> str:
        """Return the page of a workflow."""
        return f"{(self.ui or self.server).rstrip('/')}/workflows/{self.namespace}/{workflow}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"token_file {path} cannot be read ({type(error).__name__}); put the token there, or "
            f"into the environment variable {VARIABLES['token']}"
        ) from error


def load_context(path: Path | None = None, environment: Mapping[str, str] | None = None) -> Context:
    """Return where the server is.

    Parameters
    ----------
    path
        The context file; else $DPAFLOW_CONTEXT, else ~/.config/dpaflow/context.yaml if there
        is one. Relative paths in it start from its folder.
    environment
        Instead of `os.environ`. ARGO_SERVER, ARGO_NAMESPACE, ARGO_TOKEN, ARGO_CA_FILE,
        ARGO_INSECURE_SKIP_VERIFY and KUBECONFIG override the file.

    Raises
    ------
    ConfigError
        If the file does not exist although it was named, or a setting is wrong.
    """
    values = os.environ if environment is None else environment
    named = path or (Path(values[CONTEXT]) if values.get(CONTEXT) else None)
    chosen = (named or DEFAULT).expanduser()
    if named is not None and not chosen.is_file():
        raise ConfigError(f"context file {chosen}: no such file; it says where the server is, e.g. "
                          "server: https://argo.example.org:2746")  # fmt: skip
    data = _document(chosen) if chosen.is_file() else {}
    data |= _overrides(values)
    for name in ("server", "ui"):
        if "@" in str(data.get(name, "")):  # the message would show it
            raise ConfigError(f"{chosen}: {name}: no user name or password in the address, "
                              f"use token_file or {VARIABLES['token']}")  # fmt: skip
    return parse_config(Context, data, str(chosen))


def _document(path: Path) -> dict[str, Any]:
    data = read_yaml(path) or {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping with server, namespace, ...")
    if "token" in data:
        raise ConfigError(
            f"{path}: token: keep it out of this file; put it into a file that only you can read "
            f"(token_file: PATH), or into the environment variable {VARIABLES['token']}"
        )
    for name in ("token_file", "ca_file", "kubeconfig"):
        if isinstance(data.get(name), str):
            data[name] = str(path.absolute().parent / Path(data[name]).expanduser())
    return data


def _overrides(values: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: values[variable] for name, variable in VARIABLES.items() if values.get(variable)
    }
    if "kubeconfig" in found:  # kubectl allows several, the first counts
        found["kubeconfig"] = found["kubeconfig"].split(os.pathsep)[0]
    if "server" in found and "://" not in found["server"]:  # as the argo command writes it
        plain = values.get("ARGO_SECURE", "true").lower() in FALSE
        found["server"] = f"{'http' if plain else 'https'}://{found['server']}"
    if values.get("ARGO_INSECURE_SKIP_VERIFY", "").lower() not in FALSE:
        found["verify"] = False
    return found
