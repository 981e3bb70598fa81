"""``ovd speed predict``."""

import json
import statistics
from pathlib import Path

import typer

from ovd_d2.cli.speed_tables import machine, print_table


def command(
    folder: Path | None = typer.Option(None, help="Pictures; default: drawn ones."),
    images: int = typer.Option(100, help="Number of pictures."),
    model: str = typer.Option("mini", help="As of `ovd predict`."),
    device: str = typer.Option("cpu", help="cpu, cuda, cuda:1, ..."),
    batch_size: int = typer.Option(4, min=1, help="Pictures that go through the model together."),
    repeats: int = typer.Option(3, help="Runs of each side."),
    starts: int = typer.Option(5, min=0, help="Fresh processes of each kind; 0: none."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object, not a table."),
) -> None:
    """A folder of pictures in one call against one at a time; and how long a fresh process takes
    until the first detection."""
    from dataclasses import asdict

    from rich.console import Console

    from ovd_d2 import register
    from ovd_d2.benchmarks.speed.predictor import measure_folder, measure_start
    from ovd_d2.cli.predict import _silence_torch

    register()
    _silence_torch()
    with Console(stderr=True).status("opens the model") as status:
        found = measure_folder(
            folder,
            images=images,
            model=model,
            device=device,
            batch_size=batch_size,
            repeats=repeats,
            progress=status.update,
        )
        processes = []
        if starts:
            processes = list(
                measure_start(model=model, device=device, runs=starts, progress=status.update)
            )
    setting = {"model": model, **machine(device)}
    if as_json:
        facts = {**asdict(found), "ratio": found.ratio}
        print(
            json.dumps({**setting, **facts, "processes": [asdict(p) for p in processes]}, indent=2)
        )
        return
    where = f"{setting['device']}, {setting['threads']} threads, torch {setting['torch']}"
    same = f"{found.differing} pictures DIFFER" if found.differing else "the same"
    print(
        f"{model}, {found.images} pictures, {where}\n"
        f"one call, {found.batch_size} at a time: {found.per_second('together'):.2f} pictures/s; "
        f"a call for each: {found.per_second('one by one'):.2f} pictures/s; "
        f"ratio {found.ratio:.3f}\n"
        f"{found.detections} detections, {same} (differences to {found.difference:.1e})"
    )
    if not processes:
        return
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=f"fresh processes, {starts} of each",
        title_justify="left",
        caption="until the first line of output; cpu: the work of the process until its end",
        caption_justify="left",
    )
    for name in ("", "median s", "lowest", "highest", "cpu s"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for process in processes:
        seconds = process.seconds
        numbers = (
            statistics.median(seconds),
            min(seconds),
            max(seconds),
            statistics.median(process.cpu_seconds),
        )
        table.add_row(process.what, *(f"{number:.2f}" for number in numbers))
    print_table(table)
