"""Small workflows by hand, of the kind that dpaflow renders."""

from __future__ import annotations

from typing import Any

Template = dict[str, Any]


def script(name: str, source: str = "", **more: Any) -> Template:
    """A template that runs Python source."""
    base = {"image": "python:3.11", "command": ["python"], "source": source}
    return {"name": name, "script": base | more.pop("script", {}), **more}


def task(name: str, depends: str = "", **arguments: Any) -> Template:
    """A task of the same name as its template."""
    found: Template = {"name": name, "template": name}
    if depends:
        found["depends"] = depends
    return found | ({"arguments": arguments} if arguments else {})


def workflow(
    templates: list[Template], tasks: list[Template] | None = None, **spec: Any
) -> Template:
    """A workflow; without tasks it runs the only template."""
    if tasks is not None:
        dag = {"tasks": tasks, "failFast": False}
        templates = [{"name": "main", "dag": dag}, *templates]
    return {
        "apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow",
        "metadata": {"name": "test-001", "labels": {"dpaflow/run": "test"}},
        "spec": {"entrypoint": templates[0]["name"], "templates": templates, **spec},
    }  # fmt: skip
