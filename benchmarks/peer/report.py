"""results.json, results.md and results.png of the comparison."""

from __future__ import annotations

import json
import platform
import re
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.peer.cases import SOURCES, TITLES, Case, goal, memory_goal
from benchmarks.peer.quiet import DISTURBED

Record = dict[str, Any]
PEERS = {"peer": "as users run it", "tuned": "tuned"}
_COLORS = {"peer": "tab:blue", "tuned": "tab:orange"}
_HEAD = (
    "| case | atoms | precision | threads | dpaflow s | DeePMD-kit s | tuned s (which) "
    "| ratio | ratio, tuned | goal |"
)
_MEMORY_HEAD = (
    "| case | atoms | precision | dpaflow MiB | DeePMD-kit MiB | tuned MiB | ratio | goal |"
)
KINDS = {"train": "training step", "evaluate": "energy, force, virial", "start": "start"}


def keep(outdir: Path, records: list[Record]) -> None:
    """Add records to results.json, in place of older ones of the same name."""
    path = outdir / "results.json"
    known = {r["name"]: r for r in load(outdir)}
    facts = {"cpu": cpu(), "python": platform.python_version(), "torch": torch.__version__}
    for entry in records:
        known[entry["name"]] = entry | facts | {"date": time.strftime("%Y-%m-%d")}
    path.write_text(json.dumps(list(known.values()), indent=1) + "\n", encoding="utf-8")


def load(outdir: Path) -> list[Record]:
    path = outdir / "results.json"
    found: list[Record] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return found


def cpu() -> str:
    """Name of the processor and the number of cores this process may use."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"model name\s*: (.*)", text)
    wide = "AVX-512" if "avx512f" in text else "AVX2" if "avx2" in text else "no AVX2"
    name = found[1] if found else platform.machine()
    return f"{name}, {wide}, {torch.get_num_threads()} cores"


def case_of(entry: Record) -> Case:
    """Give the case that a record is about, for its goals."""
    natoms = SOURCES[entry["data"]].natoms
    frames = 1 if entry["kind"] == "evaluate" else max(1, entry["atoms"] // natoms)
    return Case(entry["kind"], entry["model"], entry["data"], (frames,))


def ratio(entry: Record, key: str, what: str = "seconds") -> float | None:
    """Divide the peer's number by ours; None where one failed."""
    mine, other = amount(entry, "dpaflow", what), amount(entry, key, what)
    return other / mine if mine and other else None


def amount(entry: Record, key: str, what: str = "seconds") -> float | None:
    """Seconds, or "memory": MiB over the bare process."""
    side = entry["sides"].get(key, {})
    if "error" in side:
        return None
    if what == "memory":
        return side["peak"] - side["bare"] if "peak" in side else None
    value: float | None = side.get(what)
    return value


def lines(records: list[Record]) -> list[str]:
    """Rows of the table of times."""
    rows = []
    for entry in records:
        if "1 head" in entry["sides"]:
            rows.append(_committee_row(entry))
            continue
        cells = [_cell(entry, key) for key in ("dpaflow", "peer", "tuned")]
        ratios = [_number(ratio(entry, key)) for key in PEERS]
        wanted = goal(case_of(entry))
        text = f"{wanted[0]:g} ({wanted[1]:g})" if wanted else ""
        what = f"{KINDS.get(entry['kind'], entry['kind'])}, {TITLES[entry['model']]}"
        head = [f"{what}, {entry['data']}", entry["atoms"], entry["precision"], entry["threads"]]
        rows.append("| " + " | ".join(map(str, [*head, *cells, *ratios, text])) + " |")
    return rows


def _committee_row(entry: Record) -> str:
    one, four = (entry["sides"][k] for k in ("1 head", "4 heads"))
    times = [side.get("seconds") for side in (one, four)]
    cells = [f"{t:.3g}" if t else side["error"] for t, side in zip(times, (one, four))]
    cost = f"{times[1] / times[0]:.2f}" if times[0] and times[1] else ""
    what = f"{entry['name'].partition(', ')[2]}, {TITLES[entry['model']]}: 1 head, 4 heads"
    head = [what, entry["atoms"], entry["precision"], entry["threads"]]
    return "| " + " | ".join(map(str, [*head, *cells, "", cost, "", "1.3 times"])) + " |"


def _cell(entry: Record, key: str) -> str:
    side = entry["sides"].get(key)
    if side is None:
        return ""
    if "error" in side:
        return str(side["error"])
    text = f"{side['seconds']:.3g}{'*' if side.get('others', 0) > DISTURBED else ''}"
    if "cold" in side:
        text += f" ({side['cold']:.3g} with neighbour search)"
    return text + (f" ({side['side']})" if key == "tuned" else "")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _memory_rows(records: list[Record]) -> list[str]:
    rows = []
    for entry in records:
        values = [amount(entry, key, "memory") for key in ("dpaflow", "peer", "tuned")]
        if not any(values):
            continue
        cells = ["" if v is None else f"{v:.0f}" for v in values]
        what = f"{KINDS.get(entry['kind'], entry['kind'])}, {TITLES[entry['model']]}"
        head = [f"{what}, {entry['data']}, t{entry['threads']}", entry["atoms"], entry["precision"]]
        wanted = f"{memory_goal(case_of(entry)):g}" if entry["kind"] != "large" else "8192 MiB"
        tail = [_number(ratio(entry, "peer", "memory")), wanted]
        rows.append("| " + " | ".join(map(str, [*head, *cells, *tail])) + " |")
    return rows


def _flatness(records: list[Record]) -> list[str]:
    """Our cost per atom against the size, microseconds."""
    found: dict[tuple[str, str, int], dict[int, float]] = {}
    for entry in records:
        seconds = amount(entry, "dpaflow")
        if entry["kind"] in ("evaluate", "large") and seconds:
            key = (entry["model"], entry["precision"], entry["threads"])
            found.setdefault(key, {})[entry["atoms"]] = 1e6 * seconds / entry["atoms"]
    rows = []
    for (model, precision, threads), costs in found.items():
        text = ", ".join(f"{atoms}: {cost:.0f}" for atoms, cost in sorted(costs.items()))
        few = [c for a, c in costs.items() if a < 20_000]
        spread = max(few) / min(few) - 1
        rows.append(f"- {TITLES[model]}, {precision}, {threads} thread(s): {text}; "
                    f"spread up to 12,000 atoms {100 * spread:.0f} %")  # fmt: skip
    return rows


def _agreement(records: list[Record]) -> list[str]:
    """Largest differences of first losses and of energies per atom."""
    rows = []
    for entry in records:
        mine = entry["sides"].get("dpaflow", {})
        for key in PEERS:
            other = entry["sides"].get(key, {})
            for what, scale in (("loss", "relative"), ("energy", "eV/atom")):
                if what in mine and what in other:
                    size = abs(mine[what]) if what == "loss" else entry["atoms"]
                    error = abs(mine[what] - other[what]) / size
                    rows.append((what, scale, other["side"], error, entry["precision"]))
    worst: dict[tuple[str, str, str, str], float] = {}
    for what, scale, side, error, precision in rows:
        worst_key = (what, scale, side, precision)
        worst[worst_key] = max(worst.get(worst_key, 0.0), error)
    return [f"- {w}, {s}, {p}: {e:.1e} ({scale})" for (w, scale, s, p), e in worst.items()]


def write(outdir: Path, skipped: list[str]) -> str:
    """Write results.md and results.png; return the text."""
    timed = sorted((r for r in load(outdir) if r["sides"]), key=_order)
    sides = [s for r in timed for s in r["sides"].values() if "code" in s]
    codes = sorted({f"{s['code']} (torch {s['torch']})" for s in sides})
    cpus = sorted({r["cpu"] for r in timed})
    text = [
        "# dpaflow against DeePMD-kit", "",
        f"{'; '.join(codes)}. {'; '.join(cpus)}.",
        "Made by `python -m benchmarks.peer`; medians of "
        f"{_turn_counts(timed)} turns, the codes alternating (one after the other where both do "
        "not fit into memory). Ratios are the peer's number over ours. "
        f"A star: other programs used more than {DISTURBED} cores in half of the turns.", "",
        "## Time", "", _HEAD, "|" + "---|" * 10, *lines(timed), "",
        "## Peak memory over the bare process", "", _MEMORY_HEAD, "|" + "---|" * 8,
        *_memory_rows(timed), "",
        "## Cost per atom of energy, force and virial (dpaflow): atoms: µs per atom", "",
        *_flatness(timed), "",
        "## Agreement of the two codes: largest difference to dpaflow", "", *_agreement(timed),
    ]  # fmt: skip
    if skipped:
        text += ["", f"No time for: {', '.join(skipped)}."]
    content = "\n".join(text) + "\n"
    (outdir / "results.md").write_text(content, encoding="utf-8")
    plot(timed, outdir / "results.png")
    return content


def _order(entry: Record) -> tuple[Any, ...]:
    """Order of the tables: what, how, on which data, how large, by which model."""
    kinds, data, models = [*KINDS, "committee", "large"], [*SOURCES], [*TITLES]
    return (
        kinds.index(entry["kind"]), entry["precision"], -entry["threads"],
        data.index(entry["data"]), entry["atoms"], models.index(entry["model"]), entry["name"],
    )  # fmt: skip


def _turn_counts(records: list[Record]) -> str:
    turns = sorted({s["turns"] for r in records for s in r["sides"].values() if "turns" in s})
    return " or ".join(map(str, turns)) or "no"


def plot(records: list[Record], path: Path) -> None:
    """Draw ratios in float32 with two threads, a panel a model; goals as ticks."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    usual = [r for r in records if (r["precision"], r["threads"]) == ("float32", 2)]
    shown = [r for r in usual if ratio(r, "peer") or ratio(r, "tuned")]
    if not shown:
        return
    rows = list(dict.fromkeys(_row(r) for r in shown))
    models = [m for m in TITLES if any(r["model"] == m for r in shown)]
    figure, panels = plt.subplots(
        1, len(models), sharex=True, sharey=True, squeeze=False, layout="constrained",
        figsize=(1.6 + 2.8 * len(models), 1.3 + 0.3 * len(rows)),
    )  # fmt: skip
    for axes, model in zip(panels[0], models, strict=True):
        for entry in (r for r in shown if r["model"] == model):
            _bars(axes, entry, rows.index(_row(entry)))
        axes.axvline(1, color="gray", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_title(TITLES[model], fontsize=9)
    first = panels[0][0]
    first.set_yticks(range(len(rows)), rows, fontsize=8)
    first.invert_yaxis()
    ticks = [1, 2, 4, 8, 16, 32]
    first.set_xticks(ticks, ticks)
    first.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    first.set_xlim(left=0.9)
    figure.supxlabel("time of DeePMD-kit / time of dpaflow (black: goal)", fontsize=9)
    names = {f"DeePMD-kit {name}": color for name, color in zip(PEERS.values(), _COLORS.values())}
    figure.legend(
        [plt.Rectangle((0, 0), 1, 1, color=color) for color in names.values()], [*names],
        loc="outside upper right", ncols=2, fontsize=8,
    )  # fmt: skip
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _row(entry: Record) -> str:
    what = {"train": "training step", "evaluate": "forces"}.get(entry["kind"], entry["kind"])
    return f"{what}, {entry['data']} {entry['atoms']}"


def _bars(axes: Any, entry: Record, at: int) -> None:
    wanted = goal(case_of(entry)) or (0, 0)
    for n, (key, color) in enumerate(_COLORS.items()):
        middle = at + 0.38 * n - 0.19
        axes.barh(middle, ratio(entry, key) or 0, 0.36, color=color)
        if wanted[n]:
            axes.plot([wanted[n]] * 2, [middle - 0.18, middle + 0.18], color="black")
