"""Running a loop to its end: what is brought to the head of the run's folder, what is told."""

from workflows import runner
from workflows.graph import Node
from workflows.run_folder import RunFolder


def test_only_the_models_of_the_last_committee_are_published(tmp_path):
    """A committee may get smaller; the steps of the larger one may still be there."""
    folder = RunFolder(tmp_path)
    for m in range(3):
        step = folder.steps / f"final-train-m{m}"
        step.mkdir(parents=True)
        (step / "model.safetensors").write_text(f"model {m}")
    nodes = [Node(f"final-train-m{m}", "train", {}) for m in range(3)]
    runner._publish_models(folder, nodes)
    models = folder.root / "models"
    assert (models / "m2.safetensors").read_text() == "model 2"
    (models / "mine.txt").write_text("")
    runner._publish_models(folder, nodes[:1])
    assert sorted(path.name for path in models.iterdir()) == ["m0.safetensors", "mine.txt"]
