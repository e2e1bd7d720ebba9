"""Publishing: readers see a whole version, old or new, whatever happens to who publishes."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dpa_core.errors import DataError
from ops.publish import PublishConfig, PublishInputs, run_publish
from ops.storage import fetch, localize, publish_folder, signature
from ops.storage.published import MANIFEST
from tests.storage.helpers import Zygote, fresh_cache, random_bytes, read_files, write_files
from tests.storage.proxy import Asked, Proxy

PUBLISH = "from pathlib import Path; from ops.storage import publish_folder\n" \
          "publish_folder(Path(argument[0]), argument[1])"  # fmt: skip
VERSIONS = [
    {
        "model.json": json.dumps({"model": "m0.safetensors", "version": k}).encode(),
        "m0.safetensors": random_bytes(20_000, k),
        "plots/parity.png": random_bytes(2_000, 10 + k),
    }
    for k in range(3)
]


def contents(folder: Path) -> dict[str, bytes]:
    """Files of a version; its manifest is compared with them."""
    files = read_files(folder)
    manifest = json.loads(files.pop(MANIFEST))["files"]
    assert {name: entry["size"] for name, entry in manifest.items()} == {
        name: len(content) for name, content in files.items()
    }
    return files


class Reader(threading.Thread):
    """Fetches again and again, past the proxy, and counts which versions it saw."""

    def __init__(self, url: str, cache: Path) -> None:
        super().__init__(daemon=True)
        self.url, self.cache = url, cache
        self.seen: Counter[int] = Counter()
        self.errors: list[Exception] = []
        self.stop = threading.Event()

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                self.seen[VERSIONS.index(contents(fetch(self.url, self.cache)))] += 1
                time.sleep(0.1)
        except Exception as error:  # noqa: BLE001  (shown by the test)
            self.errors.append(error)


def test_killed_at_every_request(
    proxy: Proxy, moto_server: str, bucket: str, tmp_path: Path, workers: tuple[Zygote, Zygote],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """kill -9 as a request of a publication arrives, for every request, while others read."""
    worker = workers[0]  # goes through the proxy; this process, hence the reader, does not
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_server)
    folders = [write_files(tmp_path / str(k), files) for k, files in enumerate(VERSIONS)]
    requests = 2 * (len(VERSIONS[1]) + 1) + 2  # look and put: files, manifest, pointer
    for number in range(100):
        url = f"s3://{bucket}/models/{number}"
        publish_folder(folders[0], url)
        proxy.reset()
        pids: list[int] = []
        started = threading.Event()

        def kill(asked: Asked, last: int = number, pids: list = pids, go: Any = started) -> None:
            if asked.number == last:
                go.wait()
                os.kill(pids[0], 9)

        proxy.plan = lambda asked, k=kill: k
        reader = Reader(url, fresh_cache(tmp_path, number))
        reader.start()
        pids.append(worker.start(PUBLISH, [str(folders[1]), url]))
        started.set()
        status = worker.wait()
        now = VERSIONS.index(contents(fetch(url, tmp_path / "c")))
        while not reader.seen and reader.is_alive():
            time.sleep(0.005)
        reader.stop.set()
        reader.join()
        assert not reader.errors
        assert set(reader.seen) <= {0, 1}
        if status == 0:
            assert (now, number, len(proxy.asked)) == (1, requests, requests)
            break
        assert status == -9
        # the request that was under way still arrives: only the last one, the pointer, counts
        assert now == 0 or number == requests - 1
        if number % 4 == 3:  # whatever is left of the attempt is in nobody's way
            assert worker.run(PUBLISH, [str(folders[2]), url]) == 0
            assert VERSIONS.index(contents(fetch(url, tmp_path / "c"))) == 2


def test_readers_during_many_publications(
    proxy: Proxy, bucket: str, tmp_path: Path, workers: tuple[Zygote, Zygote]
) -> None:
    folders = [write_files(tmp_path / str(k), files) for k, files in enumerate(VERSIONS)]
    url = f"s3://{bucket}/models/alloy"
    publish_folder(folders[0], url)
    reader = Reader(url, fresh_cache(tmp_path, "reader"))
    reader.start()
    for k in range(1, 7):
        publish_folder(folders[k % 3], url)
    reader.stop.set()
    reader.join()
    assert not reader.errors
    assert sum(reader.seen.values()) >= 1


def test_again_changes_nothing(proxy: Proxy, bucket: str, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "v", VERSIONS[0])
    url = f"s3://{bucket}/models/alloy"
    first = publish_folder(folder, url)
    before = signature(url)
    proxy.reset()
    assert publish_folder(folder, url) == first
    assert [a.method for a in proxy.asked if a.method not in ("GET", "HEAD")] == []
    assert signature(url) == before
    write_files(folder, VERSIONS[1])
    assert publish_folder(folder, url) != first
    assert signature(url) != before
    assert localize(url).read_bytes() == VERSIONS[1]["m0.safetensors"]


def test_damaged_version(proxy: Proxy, s3: Any, bucket: str, tmp_path: Path) -> None:
    url = f"s3://{bucket}/models/alloy"
    version = publish_folder(write_files(tmp_path / "v", VERSIONS[0]), url)
    key = f"models/alloy/versions/{version}/m0.safetensors"
    s3.put_object(Bucket=bucket, Key=key, Body=b"x" * 20_000)
    with pytest.raises(DataError, match=r"m0\.safetensors of the published version .* publish it"):
        fetch(url)
    s3.delete_object(Bucket=bucket, Key=key)
    with pytest.raises(DataError, match=r"m0\.safetensors of the published version"):
        fetch(url)
    publish_folder(tmp_path / "v", url)
    assert contents(fetch(url)) == VERSIONS[0]
    s3.put_object(Bucket=bucket, Key="models/alloy/latest.json",
                  Body=b'{"format": "dpaflow-published", "format_version": 9}')  # fmt: skip
    with pytest.raises(DataError, match="another version of dpaflow; use a newer one"):
        fetch(url)


@pytest.fixture
def steps(tmp_path: Path) -> dict[str, Path]:
    """Folders as steps leave them: a training, a test, the data, the report."""
    import torch

    from dpa_core.config import ModelConfig
    from dpa_core.interchange.files import save_model
    from dpa_core.model import build_model

    torch.manual_seed(1)
    config = ModelConfig.model_validate({
        "type_map": ["Cu", "Ni"],
        "descriptor": {"type": "se_e2_a", "rcut": 4.0, "rcut_smth": 0.5, "sel": [20, 20],
                       "neuron": [2, 4], "axis_neuron": 2},
        "fitting_net": {"neuron": [4, 4]},
    })  # fmt: skip
    folder = tmp_path / "steps"
    save_model(build_model(config), folder / "final-train-m0" / "model.safetensors", {})
    overall = {"nframes": 5, "natoms": 40, "rmse_e": 0.0012, "rmse_f": 0.045, "rmse_v": None}
    entries = [{"model": name, "data": "holdout", "overall": {**overall, "rmse_e": error}}
               for name, error in (("start-m0", 0.9), ("final-m0", 0.0012))]  # fmt: skip
    rows = {"dft": 7, "old": 0, "total": 7}
    table = [{"source": source, "train": frames} for source, frames in rows.items()]
    run = {"elements": ["Cu"], "train_frames": 12, "architecture": "DeepPot-SE"}
    files = {
        "final-train-m0/run.json": run,
        "final-test/results.json": {"results": entries},
        "iter-000000-collect/collect.json": {"table": table},
    }  # fmt: skip
    write_files(folder, {name: json.dumps(content).encode() for name, content in files.items()})
    page = b"<html>dpaflow 2026-02-03 04:05 UTC</html>"
    plots = {f"final-test/parity-{name}--holdout.png": b"png" for name in ("final-m0", "start-m0")}
    write_files(folder, {"report/report.html": page, **plots})
    return {path.name: path for path in folder.iterdir()}


def config(url: str) -> PublishConfig:
    model = {"name": "m0", "step": "final-train-m0", "tests": {"final-test": "final-m0"},
             "data": ["iter-000000-collect:train"], "started_from": "s3://b/other"}  # fmt: skip
    return PublishConfig(to=url, name="my-alloy", models=[model], pipeline_hash="0123")


def test_op(proxy: Proxy, bucket: str, tmp_path: Path, steps: dict[str, Path]) -> None:
    from dpa_core.interchange.files import load_model

    url = f"s3://{bucket}/models/my-alloy"
    inputs = PublishInputs(
        {"final-train-m0": steps["final-train-m0"]}, steps["report"],
        {"final-test": steps["final-test"]}, {"iter-000000-collect": steps["iter-000000-collect"]},
    )  # fmt: skip
    done = run_publish(inputs, config(url), tmp_path / "out")
    assert run_publish(inputs, config(url), tmp_path / "again") == done
    folder = fetch(url)
    assert set(read_files(folder)) == {
        "m0.safetensors", "model.json", "README.md", "report.html", "plots/m0--holdout.png",
        "manifest.json",
    }  # fmt: skip
    card = json.loads((folder / "model.json").read_text())
    (model,) = card["models"]
    assert (card["date"], card["pipeline_hash"]) == ("2026-02-03 04:05 UTC", "0123")
    assert (model["type_map"], model["elements_trained"]) == (["Cu", "Ni"], ["Cu"])
    assert model["tests"]["holdout"]["rmse_e"] == 0.0012
    assert card["training_data"] == [
        {"name": "iter-000000-collect", "part": "train", "frames": 7, "sources": ["dft"]}
    ]
    loaded = load_model(localize(url))
    assert model["parameters"] == sum(p.numel() for p in loaded.parameters())
    text = (folder / "README.md").read_text()
    assert "| holdout | 5 | 1.2 | 45.0 | – |" in text
    assert "| iter-000000-collect (train) | 7 | dft |" in text
    (steps["final-train-m0"] / "model.safetensors").write_bytes(b"half a model")
    with pytest.raises(Exception, match="not a model file"):
        run_publish(inputs, config(url), tmp_path / "broken")
    assert read_files(fetch(url)) == read_files(folder)
