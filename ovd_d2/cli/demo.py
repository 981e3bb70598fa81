"""``ovd demo``: build the mini benchmark, train and evaluate its models, show what came out.

It runs nothing but commands a user could type, and prints them. A run that is finished is not
repeated; one that was interrupted goes on from its last checkpoint.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ovd_d2 import __version__
from ovd_d2.errors import OVDError

if TYPE_CHECKING:
    from ovd_d2.engine.side_by_side import Job

# name (of configs/mini/<name>.yaml): what the table calls it
MODELS = {
    "supervised_all": "supervised on all (oracle)",
    "base_closed_set": "base only, closed set",
    "vild_text": "ViLD-text",
    "vild_text_mask": "ViLD-text, masks",
}
QUICK = ("SOLVER.MAX_ITER", "20", "SOLVER.WARMUP_ITERS", "5", "TEST.DETECTIONS_PER_IMAGE", "20")
RECORD = "demo_run.json"  # in the folder of each run: digest of its settings, seconds, finished
LINE_PERIOD = 15  # seconds between progress lines where the output is no terminal


@dataclass
class Run:
    """One model of the demo."""

    name: str
    title: str
    folder: Path
    settings: list[str]
    digest: str

    @property
    def config(self) -> str:
        return f"configs/mini/{self.name}.yaml"

    def command(self, *, resume: bool = False) -> list[str]:
        """What trains and evaluates it."""
        words = [sys.executable, "train_net.py", "--config-file", self.config]
        words += ["--resume"] if resume else []
        return [*words, "OUTPUT_DIR", str(self.folder), *self.settings]

    def record(self) -> dict[str, Any]:
        """What an earlier demo noted about this folder; empty if nothing."""
        try:
            return json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def note(self, seconds: float, *, finished: bool) -> None:
        from ovd_d2.atomic_file import write_json

        content = {"digest": self.digest, "seconds": seconds, "finished": finished}
        write_json(self.folder / RECORD, content)


def command(
    out: Path | None = typer.Option(None, help="Folder of the results; default output/demo."),
    quick: bool = typer.Option(False, "--quick", help="20 iterations each, to see that it works."),
    models: str = typer.Option(",".join(MODELS), help="Which models, separated by commas."),
    jobs: int = typer.Option(0, min=0, help="Trainings at once; 0: as many as there are cores."),
) -> None:
    """Build mini, train and evaluate its models side by side; write a table and pictures."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave no training behind
    started = time.monotonic()
    root = _find_checkout()
    out = _relative(out or Path("output/demo-quick" if quick else "output/demo"), root)
    names = [name.strip() for name in models.split(",") if name.strip()]
    unknown = [name for name in names if name not in MODELS]
    if unknown or not names:
        wrong = ", ".join(unknown) or "an empty list"
        raise OVDError(f"--models {wrong}: the demo knows {', '.join(MODELS)}.")

    _run_in_foreground([*_ovd(), "mini", "build"], root)
    runs = [_prepare(name, out, quick, root) for name in names]
    _train(runs, jobs, root, out)
    _report(runs, out, root, time.monotonic() - started)


def _find_checkout() -> Path:
    """The folder with train_net.py and configs: the current one, or the one ovd_d2 lies in."""
    for folder in (Path.cwd(), Path(__file__).resolve().parents[2]):
        if (folder / "train_net.py").is_file() and (folder / "configs/mini").is_dir():
            return folder
    raise OVDError(
        "`ovd demo` needs train_net.py and configs/mini: run it in a checkout of ovd_d2."
    )


def _relative(path: Path, root: Path) -> Path:
    """``path`` as seen from ``root`` if it lies below it, else absolute."""
    path = Path.cwd() / path.expanduser()
    return path.relative_to(root) if path.is_relative_to(root) else path


def _ovd() -> list[str]:
    script = Path(sys.executable).with_name("ovd")
    return [str(script)] if script.is_file() else [sys.executable, "-m", "ovd_d2.cli.app"]


def _show(words: list[str], root: Path, prefix: str = "") -> None:
    """Prints a command so that it can be typed in ``root``."""
    program = os.path.relpath(words[0], root) if Path(words[0]).is_relative_to(root) else words[0]
    print(f"$ {prefix}{shlex.join([program, *words[1:]])}", flush=True)


def _run_in_foreground(words: list[str], root: Path) -> None:
    _show(words, root)
    code = subprocess.run(words, cwd=root, check=False).returncode
    if code:
        raise OVDError(f"`{shlex.join(words)}` ended with exit code {code}; its message is above.")


def _prepare(name: str, out: Path, quick: bool, root: Path) -> Run:
    """Settles what the run is; moves aside what another config has left in its folder."""
    from ovd_d2.engine.run_folder import config_digest

    settings = list(QUICK) if quick else []
    if _has_gpu():
        settings += ["MODEL.DEVICE", "cuda"]
    manifest = Path(os.environ.get("DETECTRON2_DATASETS") or "datasets") / "mini-v1/manifest.json"
    data = (root / manifest).read_text(encoding="utf-8") if (root / manifest).is_file() else ""
    digest = config_digest(root / f"configs/mini/{name}.yaml", settings, data, __version__)
    run = Run(name, MODELS[name], out / name, settings, digest)
    folder = root / run.folder
    if (
        folder.is_dir()
        and any(folder.iterdir())
        and _in(run, root).record().get("digest") != digest
    ):
        aside = folder.with_name(f"{name}.before-{time.strftime('%Y%m%d-%H%M%S')}")
        folder.rename(aside)
        print(f"{run.folder} held another run; it is now {aside.name}.")
    return run


def _in(run: Run, root: Path) -> Run:
    """``run`` with its folder as seen from here; the commands keep the short one."""
    return Run(run.name, run.title, root / run.folder, run.settings, run.digest)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _train(runs: list[Run], at_once: int, root: Path, out: Path) -> None:
    """Runs what is not finished; raises OVDError if a training failed."""
    from ovd_d2.cli.demo_progress import watch
    from ovd_d2.engine.side_by_side import Job, run_side_by_side

    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    todo = []
    for run in runs:
        record = _in(run, root).record()
        if record.get("finished") and (root / run.folder / "results.json").is_file():
            print(f"{run.name}: finished earlier, see {run.folder}")
        else:
            todo.append(run)
    if not todo:
        return
    at_once = min(at_once or cores, len(todo))
    threads = str(max(1, cores // at_once))
    prefix = f"OMP_NUM_THREADS={threads} "
    trainings: dict[str, Job] = {}
    for run in todo:
        resume = (root / run.folder / "last_checkpoint").is_file()
        words = run.command(resume=resume)
        _show(words, root, prefix)
        trainings[run.name] = Job(run.name, words, root / out / "logs" / f"{run.name}.txt")
        trainings[run.name].log_file.unlink(missing_ok=True)
        (root / run.folder).mkdir(parents=True, exist_ok=True)
        _in(run, root).note(_in(run, root).record().get("seconds", 0), finished=False)
    print(f"{at_once} at once, {threads} thread(s) each; output in {out / 'logs'}", flush=True)
    before = {run.name: _in(run, root).record()["seconds"] for run in todo}
    folders = {run.name: root / run.folder for run in todo}
    try:
        with watch(trainings, folders, LINE_PERIOD) as look:
            run_side_by_side(
                list(trainings.values()),
                at_once=at_once,
                folder=root,
                environment={"OMP_NUM_THREADS": threads},
                watch=look,
            )
    finally:
        for run in todo:
            job = trainings[run.name]
            seconds = before[run.name] + job.seconds
            _in(run, root).note(seconds, finished=job.exit_code == 0)
    _explain_failures(list(trainings.values()))


def _explain_failures(jobs: "list[Job]") -> None:
    failed = [job for job in jobs if job.exit_code != 0]
    for job in failed:
        print(f"\n--- end of {job.log_file}", file=sys.stderr)
        text = job.log_file.read_text(encoding="utf-8", errors="replace")
        print("\n".join(text.splitlines()[-20:]), file=sys.stderr)
    if failed:
        names = ", ".join(f"{job.name} (exit code {job.exit_code})" for job in failed)
        raise OVDError(
            f"Training failed: {names}; the end of its output is above. `ovd demo` goes on from "
            "the last checkpoint."
        )


def _report(runs: list[Run], out: Path, root: Path, seconds: float) -> None:
    """Prints the table; writes summary.json and the pictures."""
    from ovd_d2.atomic_file import write_json
    from ovd_d2.engine.run_folder import find_predictions, read_metrics, read_results
    from ovd_d2.evaluation.summary import summarise
    from ovd_d2.inference.visualize import (
        draw_comparison,
        plot_average_precision,
        plot_loss_curves,
    )

    models, predictions, dataset = {}, {}, ""
    for run in runs:
        folder = root / run.folder
        found = read_results(folder)
        if found is None:
            raise OVDError(f"{folder / 'results.json'} is missing or broken: remove {folder}.")
        iteration, results = found
        dataset = list(results)[-1]
        models[run.name] = {
            "title": run.title,
            **summarise(results[dataset]),
            "seconds": round(_in(run, root).record().get("seconds", 0), 1),
            "iterations": iteration,
            "dataset": dataset,
            "command": shlex.join(["python", *run.command()[1:]]),
        }
        if path := find_predictions(folder):
            predictions[run.title] = path
    summary = {"models": models, "seconds": round(seconds, 1), "ovd_d2": __version__}
    write_json(root / out / "summary.json", summary)
    curves = {run.title: read_metrics(root / run.folder) for run in runs}
    plot_loss_curves(curves, root / out / "loss_curves.png")
    boxes = {model["title"]: model["box"] for model in models.values() if "box" in model}
    plot_average_precision(boxes, dataset, root / out / "average_precision.png")
    draw_comparison(dataset, predictions, root / out / "detections.png")
    _print_table(models, dataset)
    files = ("summary.json", "average_precision.png", "loss_curves.png", "detections.png")
    print(", ".join(f"{out}/{file}" for file in files))


def _print_table(models: dict[str, dict[str, Any]], dataset: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from ovd_d2.evaluation.summary import METRICS, TASKS

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
