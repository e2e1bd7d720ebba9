"""The steps of concurrent learning: the first labels, iterations, the final model.

Every iteration is the same graph; what differs (which stage is on, how much was selected) is
in files that the steps hand on. Only the number of iterations is not known beforehand:
`Progress` says how many there are by now.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ops.decide import DECISION, NEW, PREVIOUS
from ops.labelers import PoolLabeler
from ops.structures import DataSource, FileSource
from workflows.compare import MODEL, compare_nodes
from workflows.graph import Node, slug

if TYPE_CHECKING:
    from pydantic import BaseModel

    from workflows.schema import Pipeline
    from workflows.schema_loop import ConcurrentLearning
    from workflows.schema_runs import RunSettings

TEST_CONFIG = {"refit": False, "plots": False}
Phase = Literal["first", "later", "final"]


class Progress(NamedTuple):
    """How far a loop has come.

    Attributes
    ----------
    iterations
        Iterations to plan: those decided and the one to come.
    finished
        Whether the last of them ended the loop.
    labelled
        Frames labelled in all of them.
    """

    iterations: int = 1
    finished: bool = False
    labelled: int = 0


class Origin(NamedTuple):
    """What a training starts from: a model's path, the finetune block, files outside."""

    model: str
    finetune: dict[str, Any]
    files: tuple[str, ...] = ()


def decide_key(iteration: int) -> str:
    """Return the key of the step that decides about an iteration."""
    return f"iter-{iteration:06d}-decide"


@dataclass(frozen=True)
class Loop:
    """Everything the nodes are made from.

    Attributes
    ----------
    pipeline
        The whole pipeline.
    start
        The pretrained model the first training starts from, as an input path; None: scratch.
    start_files
        That model's file if it lies outside the pipeline.
    """

    pipeline: Pipeline
    start: str | None = None
    start_files: tuple[str, ...] = ()

    @property
    def settings(self) -> ConcurrentLearning:
        """The block `concurrent_learning`."""
        found = self.pipeline.concurrent_learning
        if found is None:
            raise ValueError("the pipeline has no concurrent_learning block")
        return found

    @property
    def members(self) -> range:
        """Numbers of the model files: one for all heads, or one for every member."""
        return range(1 if self.settings.committee.kind == "heads" else self.settings.committee.size)

    def nodes(self, progress: Progress) -> list[Node]:
        """Return the loop's steps, every one after those it depends on."""
        nodes = self._init()
        for k in range(progress.iterations):
            nodes += self.iteration(k)
        if progress.finished:
            nodes += self._final(progress)
        return nodes

    def iteration(self, k: int) -> list[Node]:
        """Return the steps of one iteration."""
        prefix = f"iter-{k:06d}"
        before = {} if k == 0 else {"decision": f"{decide_key(k - 1)}:{DECISION}"}
        trains = [self._train(prefix, k, m, "later" if k else "first") for m in self.members]
        models = [f"{node.key}:{MODEL}" for node in trains]
        explores = [self._explore(prefix, k, part, models, before)
                    for part in range(self.settings.explore_tasks)]  # fmt: skip
        explored = [f"{node.key}:" for node in explores]
        stages = [dump(stage.select) for stage in self.settings.stages]
        select = Node(
            f"{prefix}-select",
            "select",
            {"stages": stages, **self.common(k)},
            {"explored": explored, "models": models, "labelled": self.data(k), **before},
        )
        labels = self.label(prefix, select.key, self.settings.groups)
        test = self._test(prefix, k, models)
        groups = [f"{node.key}:" for node in labels if node.op == "label"]
        decide = self._decide(prefix, k, explored, groups, before)
        report = self._report(prefix, trains, decide)
        return [*trains, *explores, select, *labels, test, decide, report]

    def _init(self) -> list[Node]:
        names = self.settings.init.structures
        if not names:
            return []
        make = Node(
            "init-structures",
            "structures",
            {"sources": self._sources(names), "names": list(names), **self.common(None)},
            {"data": self._structure_data(names)},
            self._structure_files(names),
        )
        count = sum(self.settings.structures[name].count or 0 for name in names)
        groups = math.ceil(count / self.settings.label.group_size)
        return [make, *self.label("init", make.key, groups, allow_empty=False)]

    def common(self, iteration: int | None) -> dict[str, Any]:
        """Return the settings that several OPs share."""
        common: dict[str, Any] = {"seed": self.pipeline.seed}
        if iteration is not None:
            common["iteration"] = iteration
        if self.pipeline.type_map is not None:
            common["type_map"] = list(self.pipeline.type_map)
        return common

    def data(self, k: int) -> list[str]:
        """Folders of all frames labelled before iteration k."""
        data = [self._pool(name) for name in self.settings.init.data]
        data += ["init-collect:train"] if self.settings.init.structures else []
        return data + [f"iter-{i:06d}-collect:train" for i in range(k)]

    def _valid(self) -> list[str]:
        names = [n for n in self.settings.init.data if self.pipeline.data[n].split.valid]
        return [f"collect-{slug(name)}:valid" for name in names]

    def _train(self, prefix: str, k: int, m: int, phase: Phase) -> Node:
        """Training of member m; `phase` chooses settings and what it starts from."""
        train = self.settings.train
        # far apart, so that two pipelines with neighbouring seeds share no model
        seed = 100_000 * self.pipeline.seed + 100 * k + m
        inputs: dict[str, Any] = {"train": self.data(k)}
        origin = self.pretrained
        if phase != "first":
            previous = f"iter-{k - 1:06d}-train-m{m}:{MODEL}"
            inputs["new"] = [f"iter-{k - 1:06d}-collect:train"]
            if not (phase == "final" and train.final):
                inputs["previous"] = previous
            if train.strategy == "last":
                origin = Origin(previous, {"bias": "none", "new_fitting": False})
            elif train.strategy == "scratch":
                origin = None
        return self.training(f"{prefix}-train-m{m}", train.settings(phase), seed, inputs, origin)

    @property
    def pretrained(self) -> Origin | None:
        """The pretrained model, and how finetuning begins with it."""
        if self.start is None:
            return None
        return Origin(self.start, self.settings.train.start(), self.start_files)

    def training(
        self,
        key: str,
        settings: RunSettings,
        seed: int,
        inputs: dict[str, Any],
        origin: Origin | None,
    ) -> Node:
        """Return a training on `inputs`, with what is common to all trainings of the loop."""
        config = self._train_config(settings.run_config(), seed)
        if valid := self._valid():
            inputs["valid"] = valid
        files: tuple[str, ...] = ()
        if origin is not None:
            inputs["pretrained"], files = origin.model, origin.files
            config["finetune"] = origin.finetune
        if (replay := self.settings.train.replay) is not None:
            inputs["replay"] = [self._pool(name) for name in replay.data]
            config |= {"replay": replay.fraction, "draw_seed": self.pipeline.seed}
        return Node(key, "train", config, inputs, files)

    def _train_config(self, config: dict[str, Any], seed: int) -> dict[str, Any]:
        config["training"] = {**config["training"], "seed": seed}
        name = self.settings.model or next(iter(self.pipeline.models))
        config["model"] = self.pipeline.models[name].model_dump(mode="json", exclude_unset=True)
        if self.settings.committee.kind == "heads":
            config["model"]["heads"] = self.settings.committee.size
        return config

    def _explore(
        self, prefix: str, k: int, part: int, models: Sequence[str], before: Mapping[str, Any]
    ) -> Node:
        stages = self.settings.stages
        names = sorted({name for stage in stages for name in stage.structures})
        config = {
            "sources": self._sources(names),
            "stages": [
                {"structures": list(s.structures), "explorer": dump(s.explore)} for s in stages
            ],
            "part": part,
            "parts": self.settings.explore_tasks,
            **self.common(k),
        }
        data = self._structure_data(names)
        for stage in stages:
            if name := getattr(stage.explore, "data", None):
                data[name] = self._pool(name)
        inputs = {"models": list(models), "data": data, **before}
        files = self._structure_files(names)
        for stage in stages:  # models that another program reads
            files += tuple(map(str, getattr(stage.explore, "model_files", ())))
        return Node(f"{prefix}-explore-p{part}", "explore", config, inputs, files)

    def _sources(self, names: Sequence[str]) -> dict[str, Any]:
        return {name: dump(self.settings.structures[name]) for name in names}

    def _structure_data(self, names: Sequence[str]) -> dict[str, str]:
        sources = [self.settings.structures[name] for name in names]
        return {s.data: self._pool(s.data) for s in sources if isinstance(s, DataSource)}

    def _structure_files(self, names: Sequence[str]) -> tuple[str, ...]:
        sources = [self.settings.structures[name] for name in names]
        return tuple(str(s.path) for s in sources if isinstance(s, FileSource))

    def _pool(self, name: str) -> str:
        return f"collect-{slug(name)}:train"

    def label(
        self, prefix: str, source: str, groups: int, *, allow_empty: bool = True
    ) -> list[Node]:
        """Prepare, label in groups, collect what is labelled."""
        label = self.settings.label
        labeler = dump(label.labeler.inlined())
        data: dict[str, str] = {}
        if isinstance(label.labeler, PoolLabeler):
            data[label.labeler.data] = self._pool(label.labeler.data)
        prepare = Node(
            f"{prefix}-prepare",
            "prepare",
            {"labeler": labeler, "groups": groups, "group_size": label.group_size},
            {"selected": f"{source}:selected", "data": data},
        )
        steps = [
            Node(
                f"{prefix}-label-g{g:03d}",
                "label",
                {"labeler": labeler, "group": g},
                {"prepared": f"{prepare.key}:", "data": data},
            )
            for g in range(groups)
        ]
        paths = {f"group-{g}": f"{node.key}:labelled" for g, node in enumerate(steps)}
        config: dict[str, Any] = {
            "sources": [{"path": path, "label": name} for name, path in paths.items()],
            "filters": dump(label.filters),
            "allow_empty": True,
            "min_train": 0 if allow_empty else 1,
        }
        if self.pipeline.type_map is not None:
            config["type_map"] = list(self.pipeline.type_map)
        collect = Node(f"{prefix}-collect", "collect", config, {"paths": paths})
        return [prepare, *steps, collect]

    def _tests(self) -> dict[str, list[str]]:
        found = {}
        for name in self.settings.test:
            part = "test" if self.pipeline.data[name].split.test else "train"
            found[name] = [f"collect-{slug(name)}:{part}"]
        return found

    def _test(self, prefix: str, k: int, models: Sequence[str]) -> Node:
        """Test the committee on frames it has not seen: the new ones, and the test sets."""
        data = {NEW: [f"iter-{k:06d}-collect:train"], **self._tests()}
        if k:
            data[PREVIOUS] = [f"iter-{k - 1:06d}-collect:train"]
        inputs = {"models": {f"m{m}": path for m, path in enumerate(models)}, "data": data}
        return Node(f"{prefix}-test", "test", TEST_CONFIG, inputs)

    def _decide(
        self,
        prefix: str,
        k: int,
        explored: Sequence[str],
        labels: Sequence[str],
        before: Mapping[str, Any],
    ) -> Node:
        settings = self.settings
        stages = [
            {
                "name": settings.stage_name(number),
                "converge": dump(stage.converge),
                "max_iterations": stage.max_iterations,
                "at_max": stage.at_max,
            }
            for number, stage in enumerate(settings.stages)
        ]
        config = {
            "stages": stages,
            "iteration": k,
            "max_iterations": settings.max_iterations,
            "min_success": settings.label.min_success,
        }
        inputs: dict[str, Any] = {
            "explored": list(explored),
            "selected": f"{prefix}-select:",
            "labels": list(labels),
            "trained": f"{prefix}-train-m0:",
            "test": f"{prefix}-test:",
        }
        if before:
            inputs["previous"] = before["decision"]
        return Node(decide_key(k), "decide", config, inputs)

    def _report(self, prefix: str, trains: Sequence[Node], decide: Node) -> Node:
        inputs = {
            **{name: decide.inputs[name] for name in ("explored", "selected", "labels", "test")},
            "collected": f"{prefix}-collect:",
            "decision": f"{decide.key}:{DECISION}",
            "trained": {f"m{m}": f"{node.key}:" for m, node in enumerate(trains)},
        }
        title = self.pipeline.report.title or self.pipeline.name
        config = {"title": title, "iteration": decide.config["iteration"]}
        return Node(f"{prefix}-report", "report_iteration", config, inputs)

    def _final(self, progress: Progress) -> list[Node]:
        """Train on everything; test the first and the final models and those to compare with."""
        n = progress.iterations
        trains = [self._train("final", n, m, "final") for m in self.members]
        nodes = list(trains)
        models = {f"start-m{m}": f"iter-000000-train-m{m}:{MODEL}" for m in self.members}
        models |= {f"final-m{m}": f"{node.key}:{MODEL}" for m, node in enumerate(trains)}
        for name, steps in compare_nodes(self, progress).items():
            nodes += steps
            models[name] = f"{steps[-1].key}:{MODEL}"
        if data := self._tests():
            config = self.pipeline.test_config()
            nodes.append(Node("final-test", "test", config, {"models": models, "data": data}))
        return nodes


def dump(block: BaseModel) -> dict[str, Any]:
    """Return what a block sets, as plain JSON."""
    return block.model_dump(mode="json", exclude_unset=True)
