"""Labels from a machine that cannot be reached: write inputs, wait, read what was brought back."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field

from dpa_core.errors import DataError
from ops.files import write_text
from ops.labelers.abacus import AbacusLabeler
from ops.labelers.base import (
    WARNING,
    BaseLabeler,
    Context,
    Job,
    Label,
    LabelFailed,
    Structure,
    Waiting,
)
from ops.labelers.command import CommandLabeler
from ops.labelers.cp2k import Cp2kLabeler
from ops.labelers.qe import QeLabeler
from ops.labelers.vasp import VaspLabeler

if TYPE_CHECKING:
    from dpa_core.frames import Frame

SKIP = "SKIP"
"""A file of this name in a task's folder: no result will come, go on without."""

Program = Annotated[
    Cp2kLabeler | VaspLabeler | AbacusLabeler | QeLabeler, Field(discriminator="type")
]


class ManualLabeler(BaseLabeler):
    """Inputs are written to a folder, the run stops and says so; resume reads the results."""

    type: Literal["manual"]
    """Which labeler this is."""
    inputs: Program
    """Whose inputs are written and whose output is read; `command` is what the user runs."""
    give_up: bool = False
    """Go on with the results that are there; what is missing or wrong is left out. What was
    handed out and has no result at all yet is waited for: the setting holds for later
    iterations, too."""

    def check(self) -> list[str]:
        """Return the mistakes of `inputs`; its program is not needed on this machine."""
        return [line for line in self.inputs.check() if not line.startswith(WARNING)]

    def identity(self, elements: Sequence[str]) -> dict[str, Any]:
        """Return that of `inputs`: it does not matter who ran the program."""
        return self.inputs.identity(elements)

    def write(self, structure: Structure, folder: Path) -> None:
        """Write the inputs."""
        self.inputs.write(structure, folder)

    def mapped(self, change: Callable[[str], str]) -> Self:
        """Return the settings with `change` applied to every path."""
        return self.model_copy(update={"inputs": self.inputs.mapped(change)})

    def inlined(self) -> Self:
        """Return the settings with the text of every template in place of its path."""
        return self.model_copy(update={"inputs": self.inputs.inlined()})

    def start(self, context: Context) -> Label:
        """Return the function that reads the result in a task's folder of the hand-over."""

        def label(job: Job) -> Frame:
            if context.handout is None:
                raise DataError("a manual labeler needs the folder that was handed out")
            folder = context.handout / job.name
            if (folder / SKIP).exists():
                raise LabelFailed(f"left out by the file {SKIP}")
            output = self.inputs.output(folder)
            try:
                if not output.is_file() or output.stat().st_size == 0:
                    raise LabelFailed(f"{output.relative_to(folder)} is missing")
                return self.inputs.read(job.structure, folder)
            except (LabelFailed, DataError) as error:
                if self.give_up and self._answered(context.handout):
                    raise LabelFailed(str(error)) from error
                raise Waiting(f"{job.name}: {error}") from error

        return label

    def _answered(self, handout: Path) -> bool:
        """Whether anything came back for what was handed out."""
        return any(
            self.inputs.output(folder).is_file() or (folder / SKIP).exists()
            for folder in handout.iterdir()
            if folder.is_dir()
        )


def hand_out(
    program: CommandLabeler,
    tasks: Mapping[str, Path],
    structures: Mapping[str, Structure],
    folder: Path,
) -> None:
    """Write the inputs of all tasks and a README to a folder that can be copied away.

    Parameters
    ----------
    program
        Whose inputs these are.
    tasks
        Name -> folder of its inputs. What was handed out before stays as it is.
    structures
        Name -> structure.
    folder
        Receives one folder for each task.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, inputs in tasks.items():
        if (folder / name).exists():
            continue
        staging = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder))
        shutil.copytree(inputs, staging, dirs_exist_ok=True)
        program.finish(structures[name].elements, staging)
        staging.chmod(0o755)
        staging.rename(folder / name)
    output = program.output(Path())
    write_text(
        folder / "README.txt",
        f"{len(tasks)} calculations, one in each folder. In each of them run\n\n"
        f"    {program.command} > run.out\n\n"
        f"or whatever starts the program on your machine, bring back {output} to the same place, "
        "and resume the run.\n"
        f"An empty file {SKIP} in a folder means: no result will come, go on without it.\n",
    )


def pause_message(folder: Path, waiting: Sequence[str], total: int) -> str:
    """Say what the user has to do."""
    shown = [f"  {line}" for line in waiting[:10]]
    if len(waiting) > 10:
        shown.append(f"  ... and {len(waiting) - 10} more")
    return "\n".join(
        [
            f"{len(waiting)} of {total} labels must come from outside. The inputs are in",
            f"  {folder}",
            "Run them where the program is (README.txt says how), put the outputs back, then "
            "resume; with `--from` this step `--set label.labeler.give_up=true` it goes on without "
            "the missing ones. Missing:",
            *shown,
        ]
    )
