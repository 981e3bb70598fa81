"""``ovd mini``: builds and shows the embedded benchmark."""

import os
import time
from pathlib import Path

import typer

app = typer.Typer(
    help="The embedded benchmark: 160 categories, 2800 images, built from package registries.",
    no_args_is_help=True,
)
_ROOT = typer.Option(
    None, help="Folder of all data sets; default $DETECTRON2_DATASETS, or datasets/."
)
_OUT = typer.Option(None, help="Picture to write; default output/mini_SPLIT.png.")


def _datasets_root(root: Path | None) -> Path:
    return Path(root or os.getenv("DETECTRON2_DATASETS") or "datasets").expanduser()


@app.command()
def build(
    root: Path | None = _ROOT,
    jobs: int = typer.Option(0, help="Drawing processes; 0: one per CPU core, at most 8."),
    force: bool = typer.Option(False, "--force", help="Build anew and replace what is there."),
) -> None:
    """Build mini-v1: about 110 MB, less than a minute; instant when it is there and intact."""
    from ovd_d2.benchmarks.mini.build import build_mini

    start = time.perf_counter()
    folder, built = build_mini(
        _datasets_root(root),
        jobs=jobs or max(1, min(8, os.cpu_count() or 1)),
        force=force,
        progress=True,
    )
    seconds = time.perf_counter() - start
    what = "built" if built else "already built, verified"
    print(f"{folder}: {what} ({seconds:.1f} s)")


@app.command()
def show(
    root: Path | None = _ROOT,
    split: str = typer.Option("val", help="train_all, train_base, val, val_seen or test."),
    out: Path | None = _OUT,
    num: int = typer.Option(12, help="Number of samples."),
) -> None:
    """Draw a sheet of samples with boxes, masks and names; novel categories in orange."""
    from ovd_d2.benchmarks.mini.show import draw_sheet

    out = out or Path("output") / f"mini_{split}.png"
    print(f"wrote {draw_sheet(_datasets_root(root), split, out, num=num)}")


@app.command()
def examples(
    out: Path = typer.Option(..., help="The .json to write, for `ovd vocab learn`."),
    root: Path | None = _ROOT,
    split: str = typer.Option("val", help="Whose boxes: val (as test, of the unseen style), ..."),
    count: int = typer.Option(5, min=1, help="Boxes per class."),
    seed: int = typer.Option(1, help="Of the choice."),
    classes: str = typer.Option("novel", help="Which classes by examples: novel or all."),
) -> None:
    """Draw example boxes of classes; the other classes stay words."""
    from ovd_d2.benchmarks.mini.examples import draw_examples

    options = {"split": split, "count": count, "seed": seed, "classes": classes}
    print(f"{out}: {draw_examples(_datasets_root(root), out, **options)} examples")
