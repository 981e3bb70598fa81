"""``ovd benchmark``: the paper's comparison on mini, every row with several seeds.

It runs nothing but commands a user could type, and prints them. A row that is finished is not
repeated; one that was interrupted goes on from its last checkpoint.
"""

import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ovd_d2 import __version__
from ovd_d2.cli.demo import device_settings, ovd_script, say

if TYPE_CHECKING:
    from ovd_d2.engine.recipe_runs import Run

# Rows of the table, in its order: name of configs/mini/<name>.yaml -> title.
ROWS = {
    "supervised_all": "supervised on all (oracle)",
    "vild_text": "ViLD-text",
    "two_heads_no_distillation": "two heads, no distillation (control)",
    "vild_image": "ViLD-image",
    "vild": "ViLD",
    "vild_ensemble": "ViLD-ensemble",
    "vild_text_clip": "ViLD-text + CLIP on crops",
    "clip_on_crops": "CLIP on crops",
}
PROPOSER = "vild_text"  # a detector that has seen boxes of base categories only
NEEDS_REGIONS = ("vild_image", "vild", "vild_ensemble")
EVALUATED_ONLY = ("vild_text_clip", "clip_on_crops")  # with the weights of PROPOSER
REGIONS_PER_IMAGE = 60


def command(
    out: Path = typer.Option(Path("output/benchmark"), help="Folder of the results."),
    seeds: int = typer.Option(3, min=1, help="Trainings per row."),
    minutes: float = typer.Option(60, help="No seed is begun that would end later than this."),
    rows: str = typer.Option(",".join(ROWS), help="Which rows, separated by commas."),
    jobs: int = typer.Option(0, min=0, help="Trainings at once; 0: as many as there are cores."),
) -> None:
    """Train and evaluate every ViLD variant on mini; write a table of means over seeds."""
    from ovd_d2.engine import recipe_runs
    from ovd_d2.errors import OVDError

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave no training behind
    root = recipe_runs.find_checkout("ovd benchmark")
    out = recipe_runs.seen_from(out, root)
    names = [name.strip() for name in rows.split(",") if name.strip()]
    unknown = [name for name in names if name not in ROWS]
    if unknown or not names:
        wrong = ", ".join(unknown) or "an empty list"
        raise OVDError(f"--rows {wrong}: the benchmark knows {', '.join(ROWS)}.")
    started = time.monotonic()
    recipe_runs.run_in_foreground([*ovd_script(), "mini", "build"], root, say)
    done: dict[str, list[Run]] = {name: [] for name in names}
    longest = 0.0
    for seed in range(1, seeds + 1):
        elapsed = time.monotonic() - started
        if seed > 1 and elapsed + longest > 60 * minutes:
            say(f"Stopping after {seed - 1} seeds: another would not end within {minutes:g} min.")
            break
        for name, run in _one_seed(names, seed, out, root, jobs).items():
            done[name].append(run)
        longest = max(longest, time.monotonic() - started - elapsed)
        _report(done, out, root, time.monotonic() - started)


def _one_seed(
    names: Sequence[str], seed: int, out: Path, root: Path, jobs: int
) -> "dict[str, Run]":
    """Trains and evaluates every row with one seed."""
    from ovd_d2.cli.training_progress import watch
    from ovd_d2.engine import recipe_runs

    def run_of(name: str, *settings: str, **kwargs: Any) -> "Run":
        run = recipe_runs.Run(
            f"{name}-seed{seed}",
            ROWS[name],
            f"configs/mini/{name}.yaml",
            out / f"{name}-seed{seed}",
            ("SEED", str(seed), *settings, *device_settings()),
            **kwargs,
        )
        return recipe_runs.prepare(run, root, say)

    def perform(runs: "Mapping[str, Run]") -> None:
        recipe_runs.perform(
            list(runs.values()), at_once=jobs, root=root, logs=out / "logs", say=say, watch=watch
        )

    needs_proposer = {PROPOSER, *NEEDS_REGIONS, *EVALUATED_ONLY}
    first = [name for name in ROWS if name in names and name not in needs_proposer]
    if needs_proposer & set(names):
        first.append(PROPOSER)
    finished = {name: run_of(name) for name in first}
    perform(finished)
    rest: dict[str, Run] = {}
    if set(NEEDS_REGIONS) & set(names):
        store = build_regions(_first_seed(finished[PROPOSER], out), out, root)
        for name in NEEDS_REGIONS:
            if name in names:
                rest[name] = run_of(name, "DATASETS.REGION_STORE", str(store))
    for name in EVALUATED_ONLY:
        if name in names:
            proposer = finished[PROPOSER]
            weights = str(proposer.folder / "model_final.pth")
            rest[name] = run_of(name, weights=weights, inputs=(proposer.digest,))
    perform(rest)
    finished |= rest
    return {name: finished[name] for name in names}


def _first_seed(run: "Run", out: Path) -> "Run":
    """The proposer whose regions all seeds learn from: one store serves them all."""
    from dataclasses import replace

    return replace(run, folder=out / f"{PROPOSER}-seed1")


def build_regions(proposer: "Run", out: Path, root: Path) -> Path:
    """``ovd regions build`` with the proposals of a finished run; the store's folder.

    The folder is named by the run, so that another detector's proposals are never mixed in.
    """
    import json

    from ovd_d2.engine import recipe_runs

    record = json.loads((root / proposer.folder / recipe_runs.RECORD).read_text(encoding="utf-8"))
    store = out / f"regions-{record['digest'][:8]}"
    words = [*ovd_script(), "regions", "build", "--dataset", "mini_v1_train_base"]
    words += ["--proposals", f"rpn:{proposer.folder}/model_final.pth", "--encoder", "mini-teacher"]
    words += ["--topk", str(REGIONS_PER_IMAGE), "--out", str(store)]
    recipe_runs.run_in_foreground(words, root, say)
    return store


def _report(done: "Mapping[str, Sequence[Run]]", out: Path, root: Path, seconds: float) -> None:
    """Writes summary.json, table.md and average_precision.png; prints the table."""
    from ovd_d2.atomic_file import atomic_write, write_json
    from ovd_d2.engine.recipe_runs import collect
    from ovd_d2.evaluation.seeds import markdown_table, mean_and_spread
    from ovd_d2.inference.visualize import plot_average_precision

    rows: dict[str, dict[str, Any]] = {}
    for name, runs in done.items():
        summaries = [collect(run, root) for run in runs]
        rows[name] = {
            "title": ROWS[name],
            "seeds": len(runs),
            "box": mean_and_spread([summary["box"] for summary in summaries]),
            "runs": summaries,
        }
    dataset = next(iter(rows.values()))["runs"][0]["dataset"]
    summary = {"dataset": dataset, "rows": rows, "seconds": round(seconds, 1)}
    write_json(root / out / "summary.json", {**summary, "ovd_d2": __version__})
    titled = {row["title"]: row["box"] for row in rows.values()}
    with atomic_write(root / out / "table.md") as file:
        file.write(markdown_table(titled).encode())
    plot_average_precision(titled, dataset, root / out / "average_precision.png")
    _print_table(titled, dataset, max(row["seeds"] for row in rows.values()))
    say(f"{out}/summary.json, {out}/table.md, {out}/average_precision.png")


def _print_table(rows: Mapping[str, Any], dataset: str, seeds: int) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from ovd_d2.evaluation.seeds import cell
    from ovd_d2.evaluation.summary import METRICS

    title = f"Box AP in percent on {dataset}, mean of {seeds} seed(s) (range)"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("model", no_wrap=True)
    for metric in METRICS:
        table.add_column(metric, justify="right", no_wrap=True)
    for name, metrics in rows.items():
        table.add_row(name, *[cell(metrics[metric]) for metric in METRICS])
    console = Console()
    Console(width=max(console.width, 140)).print(table)
