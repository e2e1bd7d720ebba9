"""A dflow workflow of one's own in which OPs of dpaflow are steps beside an own one.

    python examples/custom_loop/dflow_loop.py FOLDER

heats a crystal round by round. Each round trains a committee on all labels so far and lets it
explore at a higher temperature; `pick`, an OP that dpaflow knows nothing of, chooses from every
trajectory the frame whose energy is least certain; what it picked is labelled with EMT. In the
end every model is tested on the frames of every round, those it has not seen included.

It runs in dflow's debug mode, on this machine and without a cluster. With --image it goes to
the Argo server that dflow's variables (DFLOW_HOST, DFLOW_S3_ENDPOINT, ...) name instead; the
image must hold dpaflow.
"""

import argparse
import json
import sys
from pathlib import Path

from dflow import OutputArtifact, Step, Steps, Workflow, config, download_artifact
from dflow.python import OP, Artifact, PythonOPTemplate

from dpa_core.config import Config, parse_config
from ops import (
    ExploreConfig,
    LabelConfig,
    PrepareConfig,
    RunTestConfig,
    RunTrainConfig,
    StructuresConfig,
)
from ops.base import StepRequest
from ops.explorers import AseExplorer
from ops.labelers import AseLabeler
from ops.step_op import FOLDER, python_command, step
from ops.structures import GenerateSource

LABELLER = AseLabeler(type="ase", calculator="emt")
CRYSTAL = GenerateSource(
    lattice="fcc", element="Cu", a=3.7, cell="cubic", supercell=(2, 2, 1),
    composition={"Cu": 3, "Ni": 1}, rattle=0.05, strain=0.02, count=6,
)  # fmt: skip
MODEL = "model.safetensors"


@OP.function
def pick(explored: Artifact(Path)) -> {"picked": Artifact(Path)}:  # noqa: F821 (dflow's syntax)
    """Choose the frame of each trajectory on whose energy the committee agrees least."""
    # dflow sends the source of this function, and nothing else of this file, to where it runs
    import json
    from pathlib import Path

    from dpa_core.committee import read_model_devi
    from dpa_core.data import open_dataset, write_mixed

    chosen, names, type_map = [], [], ()
    for trajectory in json.loads((explored / "explore.json").read_text())["trajectories"]:
        if trajectory["frames"] == 0:
            continue
        folder = explored / "trajectories" / trajectory["name"]
        frames = open_dataset(folder)
        steps, deviation = read_model_devi(folder / "model_devi.out")
        k = int(deviation.devi_e.argmax())
        chosen.append(frames[k])
        names.append(f"{trajectory['structure']} step {steps[k]}")
        type_map = frames.type_map
    picked = Path("picked")
    picked.mkdir()
    if chosen:
        write_mixed(chosen, type_map, picked, source=names)
    return {"picked": picked}


def training(seed: int, steps: int) -> RunTrainConfig:
    """Return the settings of a training; what is not said has the defaults of a pipeline."""
    document = {
        # one descriptor with three fitting nets: a committee in one file
        "model": {
            "heads": 3,
            "descriptor": {"type": "dpa1", "rcut": 4.5, "sel": 80, "neuron": [8, 16],
                           "axis_neuron": 4, "attn_layer": 0},
            "fitting_net": {"neuron": [32, 32]},
        },
        "training": {"training_data": {"batch_size": 4}, "numb_steps": steps,
                     "disp_freq": steps, "seed": seed},
        "learning_rate": {"type": "exp", "start_lr": 3e-3, "stop_lr": 1e-4},
    }  # fmt: skip
    return parse_config(RunTrainConfig, document, "the custom workflow")


def exploration(temperature: float, seed: int) -> ExploreConfig:
    """Return short molecular dynamics of new crystals at one temperature (K)."""
    dynamics = AseExplorer(
        ensemble="nvt", temperatures=(temperature,), timestep=4, steps=50, trj_freq=5
    )
    stage = {"structures": ("crystal",), "explorer": dynamics}
    return ExploreConfig(sources={"crystal": CRYSTAL}, stages=(stage,), seed=seed)


class Heating:
    """The graph, step after step."""

    def __init__(self, image: str | None) -> None:
        self.steps = Steps("heating")
        self.image = image

    def add(self, key: str, op: str, settings: Config, inputs: dict, **artifacts: Step) -> Step:
        """Add an OP of dpaflow; its inputs are "NAME:path" in the artifact called NAME."""
        request = StepRequest(key=key, op=op, config=settings, inputs=inputs)
        made = step(request, artifacts, image=self.image)
        self.steps.add(made)
        return made

    def add_pick(self, key: str, explore: Step) -> OutputArtifact:
        """Add the own OP as one would without dpaflow, and return what it picks."""
        template = PythonOPTemplate(
            pick, image=self.image, command=python_command(), upload_dflow=False
        )
        artifacts = {"explored": explore.outputs.artifacts[FOLDER]}
        made = Step(key, template, artifacts=artifacts, key=key)
        self.steps.add(made)
        return made.outputs.artifacts["picked"]

    def add_labels(self, name: str, selected: str, **source: Step) -> Step:
        """Add the two steps that label structures, and return the second."""
        settings = PrepareConfig(labeler=LABELLER)
        prepare = self.add(f"{name}-prepare", "prepare", settings, {"selected": selected}, **source)
        settings = LabelConfig(labeler=LABELLER)
        return self.add(f"{name}-label", "label", settings, {"prepared": "it:"}, it=prepare)


def build(temperatures: list[float], numb_steps: int, image: str | None = None) -> Steps:
    """Return the whole graph."""
    graph = Heating(image)
    start = graph.add("start", "structures", StructuresConfig(sources={"crystal": CRYSTAL}), {})
    labels = {"start": graph.add_labels("start", "it:selected", it=start)}
    models: dict[str, Step] = {}
    for k, temperature in enumerate(temperatures):
        name = f"round{k}"
        data = {"train": [f"{known}:labelled" for known in labels]}
        train = graph.add(f"{name}-train", "train", training(k, numb_steps), data, **labels)
        models[f"model{k}"] = train
        committee = {"models": [f"it:{MODEL}"]}
        dynamics = exploration(temperature, seed=k)
        explore = graph.add(f"{name}-explore", "explore", dynamics, committee, it=train)
        labels[name] = graph.add_labels(name, "it:", it=graph.add_pick(f"{name}-pick", explore))
    every = {
        "models": {name: f"{name}:{MODEL}" for name in models},
        "data": {name: [f"{name}:labelled"] for name in labels},
    }
    graph.add("test", "test", RunTestConfig(refit=False, plots=False), every, **models, **labels)
    return graph.steps


def show(workflow: Workflow, folder: Path) -> None:
    """Print the force error of every model on the frames of every round."""
    found = workflow.query_step(key="test")[0]
    download_artifact(found.outputs.artifacts[FOLDER], path=folder / workflow.id / "result")
    results = next((folder / workflow.id / "result").rglob("results.json"))
    for entry in json.loads(results.read_text())["results"]:
        error = 1000 * entry["overall"]["rmse_f"]
        print(f"{entry['model']} on the frames of {entry['data']}: {error:.0f} meV/Å")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where dflow works, and the result comes to")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[300, 900], help="K")
    parser.add_argument("--steps", type=int, default=300, help="of every training")
    parser.add_argument("--image", help="run on a cluster, in this image")
    args = parser.parse_args(arguments)
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    config["detect_empty_dir"] = False  # an empty folder is a result: nothing was picked
    if args.image is None:
        config.update(mode="debug", debug_workdir=str(folder), debug_artifact_dir=str(folder))
    workflow = Workflow("heating", steps=build(args.temperatures, args.steps, args.image))
    workflow.submit()
    workflow.wait()
    if workflow.query_status() != "Succeeded":
        failed = [found.key for found in workflow.query_step(phase=["Failed", "Error"])]
        print(f"failed: {', '.join(filter(None, failed)) or 'see above'}")
        return 1
    show(workflow, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
