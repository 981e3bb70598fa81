"""``ovd finetune``: a trained model learns from your own labelled images."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from ovd_d2.errors import OVDError

from .predict import _silence_torch
from .register_option import REGISTER

_DATA = typer.Argument(
    ...,
    metavar="DATA",
    help="A COCO json, a YOLO folder (data.yaml), a Pascal VOC folder, or a json of Label Studio.",
)
_OVERRIDES = typer.Argument(
    None, metavar="KEY VALUE", help="Config keys, as train_net.py takes them."
)
_OUT = typer.Option(..., help="Folder to write.")
_VAL = typer.Option("", help="Validation data in any of the formats; default: a fifth of DATA.")
_IMAGES = typer.Option("", help="Folder of the images of a json; default: looked for beside it.")
_KIND = typer.Option("", help="coco, yolo, voc or label-studio; default: looked for.")
_SHOTS = typer.Option(0, min=0, help="Train on so many images of each class; 0: on all.")
_RECIPE = typer.Option(
    "",
    help="What learns: full (everything), frozen (all but the backbones), linear (what makes "
    "classes and boxes of regions), prompt (an offset of the words; GLIP) or lora (adapters of "
    "attention layers); default: frozen for fewer than 1000 images, else full.",
)
_MODEL = typer.Option(
    "", help="As in `ovd predict`: packaged, of `ovd models list`, a folder, hf:...; default: mini."
)
_CONFIG = typer.Option("", help="The yaml a model was trained with, instead of --model.")
_WEIGHTS = typer.Option("", help="Checkpoint for --config-file.")
_ITERATIONS = typer.Option(
    0, min=0, help="Default: 20 times over the images, at least 100 and at most 5000."
)
_RATE = typer.Option(0.0, "--lr", min=0, help="Learning rate of AdamW; default: by the recipe.")
_OLD = typer.Option(
    "", help="dataset:NAME of what the model knew, to see what it forgets; default: its own test."
)
_REPLAY = typer.Option("", help="Name of a data set to train on too, so that less is forgotten.")
_SHARE = typer.Option(0.25, help="Share of the batches that are of --replay.")
_SEED = typer.Option(0, min=0, help="Of the split, the shots and the training.")


def command(
    data: str = _DATA,
    overrides: list[str] | None = _OVERRIDES,
    out: Path = _OUT,
    val: str = _VAL,
    images: str = _IMAGES,
    kind: str = _KIND,
    shots: int = _SHOTS,
    recipe: str = _RECIPE,
    model: str = _MODEL,
    config_file: str = _CONFIG,
    weights: str = _WEIGHTS,
    iterations: int = _ITERATIONS,
    lr: float = _RATE,
    old: str = _OLD,
    replay: str = _REPLAY,
    replay_share: float = _SHARE,
    seed: int = _SEED,
    check_only: bool = typer.Option(False, "--check-only", help="Report on the data, and stop."),
    resume: bool = typer.Option(False, "--resume", help="Go on with what is in OUT."),
    registered: list[str] = REGISTER,
) -> None:
    """Check labelled images, train a detector on them, and compare it with what it was before.

    OUT/model is for `ovd predict --model`, OUT/finetune.yaml for train_net.py. Exit code 1 of
    --check-only: some labels or images cannot be used; they are named and left out.
    """
    if check_only and resume:
        raise OVDError("--check-only and --resume exclude each other.")
    from ovd_d2 import register

    register()
    from ovd_d2.jobs import finetune as job

    _silence_torch()
    settings = job.FinetuneSettings(
        data=data, out=str(out), val=val, images=images, kind=kind, shots=shots, seed=seed,
        recipe=recipe, model=model, config_file=config_file, weights=weights,
        iterations=iterations, rate=lr, old=old, replay=replay, replay_share=replay_share,
        overrides=tuple(overrides or ()),
    )  # fmt: skip
    said = job.Said(_say, _bar)
    if check_only:
        left_out = job.check_only(settings, said).left_out
        if left_out:
            print(f"{left_out} things were left out; {out}/{job.DATA}/report.txt names them.")
            raise typer.Exit(1)
        return
    try:
        report = job.finetune(settings, said, resume=resume)
    except KeyboardInterrupt:
        raise OVDError(f"interrupted; the same command with --resume goes on in {out}") from None
    _show(report, out)


def _say(line: str) -> None:
    print(line, flush=True)


@contextmanager
def _bar(title: str, total: int) -> Iterator[Callable[[], Any]]:
    from tqdm import tqdm

    with tqdm(total=total, desc=title, delay=1, disable=None) as bar:
        yield bar.update


def _show(report: dict[str, Any], out: Path) -> None:
    """The table of AP before and after, where everything is, and what to type next."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from ovd_d2.jobs.finetune import CURVES, MODEL, PREDICTIONS

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("in percent", "before", "after"):
        table.add_column(column, justify="left" if column == "in percent" else "right")
    for part, title in (("new", "your classes (validation)"), ("old", "what it knew before")):
        if not isinstance(report[part], dict):
            continue
        for metric in ("AP", "AP50"):
            values = [report[part][when].get(metric) for when in ("before", "after")]
            shown = ["-" if value is None else f"{value:.1f}" for value in values]
            table.add_row(f"{metric} {title}", *shown)
    Console(width=100).print(table)
    if not isinstance(report["old"], dict):
        print(report["old"])
    minutes, seconds = divmod(round(report["seconds"]), 60)
    print(f"done after {minutes}:{seconds:02d}; {out}/{PREDICTIONS}, {out}/{CURVES}")
    print(f"next: ovd predict IMAGES --model {out}/{MODEL}")
