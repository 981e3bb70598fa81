"""``ovd demo``: build the mini benchmark, train and evaluate its models, show what came out.

It runs nothing but commands a user could type, and prints them. A run that is finished is not
repeated; one that was interrupted goes on from its last checkpoint.
"""

import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ovd_d2 import __version__
from ovd_d2.benchmarks.recipes.commands import build_regions, device_settings, ovd_script, say
from ovd_d2.errors import OVDError

if TYPE_CHECKING:
    from ovd_d2.benchmarks.recipes.runs import Run

# name (of configs/mini/<name>.yaml): what the table calls it
MODELS = {
    "supervised_all": "supervised on all (oracle)",
    "base_closed_set": "base only, closed set",
    "vild_text": "ViLD-text",
    "vild_text_batch8": "ViLD-text, batch of 8",
    "vild_text_mask": "ViLD-text, masks",
    "vild_ensemble": "ViLD-ensemble",
    "vild_ensemble_batch8": "ViLD-ensemble, longer, batch of 8",
}
DEFAULT_MODELS = ("vild_text_batch8", "vild_ensemble_batch8")
PROPOSER = "vild_text_batch8"  # has seen boxes of base categories only; its boxes go to the teacher
NEEDS_REGIONS = ("vild_ensemble", "vild_ensemble_batch8")
GOES_ON = ("vild_ensemble_batch8",)  # from the proposer's weights
PROCESSES = 2  # a training on the CPU is split over; fixed, so that any machine gets the same model
REGIONS_PER_IMAGE = 14
QUICK = ("SOLVER.MAX_ITER", "20", "SOLVER.WARMUP_ITERS", "5", "TEST.DETECTIONS_PER_IMAGE", "20")

_PICTURES = {
    "detections.png": "The same test scenes: what is there, and what each model finds.",
    "average_precision.png": "AP of base and of novel categories.",
    "loss_curves.png": "Losses while training.",
}


def command(
    out: Path | None = typer.Option(None, help="Folder of the results; default output/demo."),
    quick: bool = typer.Option(False, "--quick", help="20 iterations each, to see that it works."),
    models: str = typer.Option(
        ",".join(DEFAULT_MODELS), help=f"Which models, separated by commas, of {', '.join(MODELS)}."
    ),
    jobs: int = typer.Option(
        0, min=0, help="Trainings at once, of two processes each; 0: one for every two cores."
    ),
    seed: int = typer.Option(1, min=1, help="Of the trainings."),
) -> None:
    """Build mini, train and evaluate its models; write a table, curves and pictures."""
    from ovd_d2.benchmarks.recipes import runs as recipe_runs
    from ovd_d2.cli.training_progress import watch
    from ovd_d2.files.atomic import check_output_folder

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave no training behind
    started = time.monotonic()
    root = recipe_runs.find_checkout("ovd demo")
    out = recipe_runs.seen_from(out or Path("output/demo-quick" if quick else "output/demo"), root)
    check_output_folder("--out", root / out)
    names = [name.strip() for name in models.split(",") if name.strip()]
    unknown = [name for name in names if name not in MODELS]
    if unknown or not names:
        wrong = ", ".join(unknown) or "an empty list"
        raise OVDError(f"--models {wrong}: the demo knows {', '.join(MODELS)}.")

    recipe_runs.run_in_foreground([*ovd_script(), "mini", "build"], root, say)
    settings = (*(QUICK if quick else ()), *device_settings())
    settings += ("SEED", str(seed)) if seed != 1 else ()
    processes = 1 if device_settings() else PROCESSES

    def prepared(name: str, *more: str) -> "Run":
        config = f"configs/mini/{name}.yaml"
        run = recipe_runs.Run(
            name, MODELS[name], config, out / name, (*more, *settings), processes=processes
        )
        return recipe_runs.prepare(run, root, say)

    def perform(runs: "list[Run]") -> None:
        recipe_runs.perform(runs, at_once=jobs, root=root, logs=out / "logs", say=say, watch=watch)

    distilled = [name for name in names if name in NEEDS_REGIONS]
    others = {name: prepared(name) for name in names if name not in distilled}
    if distilled and PROPOSER not in others:
        others[PROPOSER] = prepared(PROPOSER)
    perform(list(others.values()))
    done = others
    if distilled:
        store = str(build_regions(others[PROPOSER], out, root, REGIONS_PER_IMAGE))
        weights = ("MODEL.WEIGHTS", f"{others[PROPOSER].folder}/model_final.pth")
        learned = {
            name: prepared(
                name, "DATASETS.REGION_STORE", store, *(weights if name in GOES_ON else ())
            )
            for name in distilled
        }
        perform(list(learned.values()))
        done = {**others, **learned}
    _report([done[name] for name in names], out, root, time.monotonic() - started, seed)


def _report(runs: "list[Run]", out: Path, root: Path, seconds: float, seed: int) -> None:
    """Prints the table; writes summary.json and the pictures."""
    from ovd_d2.benchmarks.recipes.run_folder import find_predictions, read_metrics
    from ovd_d2.benchmarks.recipes.runs import collect
    from ovd_d2.benchmarks.recipes.seeds import mean_and_spread
    from ovd_d2.files.atomic import atomic_write, write_json
    from ovd_d2.visualization.results_page import results_page
    from ovd_d2.visualization.training_plots import (
        draw_comparison,
        plot_average_precision,
        plot_loss_curves,
    )

    models = {run.name: collect(run, root) for run in runs}
    dataset = models[runs[-1].name]["dataset"]
    summary = {
        "models": models, "seconds": round(seconds, 1), "seed": seed, "ovd_d2": __version__
    }  # fmt: skip
    write_json(root / out / "summary.json", summary)
    curves = {run.title: read_metrics(root / run.folder) for run in runs}
    plot_loss_curves(curves, root / out / "loss_curves.png")
    boxes = {
        model["title"]: mean_and_spread([model["box"]])
        for model in models.values()
        if "box" in model
    }
    plot_average_precision(boxes, dataset, root / out / "average_precision.png")
    found = {run.title: find_predictions(root / run.folder) for run in runs}
    predictions = {title: path for title, path in found.items() if path}
    draw_comparison(dataset, predictions, root / out / "detections.png")
    print_table(models, dataset)
    table = {
        model["title"]: {**model["box"], "seconds": model["seconds"]}
        for model in models.values()
        if "box" in model
    }
    said = (
        f"Box AP in percent on {dataset}, whose art style no training image shows; one seed, so a "
        "point or two is noise. All but the oracle have seen boxes of base categories alone.",
        f"Trained and evaluated in {seconds / 60:.0f} minutes. Artwork: Noto Emoji, Google, "
        "Apache-2.0.",
    )
    with atomic_write(root / out / "index.html") as file:
        file.write(results_page("ovd_d2 on mini", said, table, _PICTURES).encode())
    files = ("index.html", "summary.json", *_PICTURES)
    print(", ".join(f"{out}/{file}" for file in files))


def print_table(models: dict[str, dict[str, Any]], dataset: str) -> None:
    """One row per model and task (box, segm)."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from ovd_d2.benchmarks.recipes.summary import METRICS, TASKS

    table = Table(title=f"AP in percent on {dataset}", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("model", no_wrap=True)
    table.add_column("of")
    for metric in (*METRICS, "seconds"):
        table.add_column(metric, justify="right", no_wrap=True)
    for model in models.values():
        for task in (name for name in TASKS.values() if name in model):
            values = ["-" if v is None else f"{v:.1f}" for v in model[task].values()]
            first = task == "box"
            seconds = f"{model['seconds']:.0f}" if first else ""
            table.add_row(model["title"] if first else "", task, *values, seconds)
    console = Console()
    Console(width=max(console.width, 100)).print(table)
