"""``ovd speed export``: a detector in PyTorch beside its exported graphs."""

import json
from pathlib import Path

import typer

from .speed_tables import machine, print_table


def export(
    model: str = typer.Option("mini", help="A model or checkpoint, as for `ovd export --format`."),
    config_file: Path | None = typer.Option(None, help="The yaml of a checkpoint."),
    image: Path | None = typer.Option(None, help="A picture; default: a random one."),
    vocabulary: str = typer.Option(
        "", "--vocab", help="What to look for; default: the model's own classes."
    ),
    repeats: int = typer.Option(10, help="Timed runs of each side, after three first ones."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object, not a table."),
) -> None:
    """A detector in PyTorch against its graphs in onnxruntime and TorchScript, on a CPU."""
    from dataclasses import asdict

    from rich.console import Console

    from ovd_d2 import register
    from ovd_d2.benchmarks.speed.exported import EAGER, measure_exported

    register()
    with Console(stderr=True).status("") as status:
        found = measure_exported(
            model, config_file=config_file or "", image=image or "", vocabulary=vocabulary,
            repeats=repeats, progress=status.update,
        )  # fmt: skip
    facts = machine("cpu")
    if as_json:
        ratios = {side: found.ratio(side) for side in found.bytes}
        medians = {side: found.median(side) for side in found.seconds}
        numbers = {"median_seconds": medians, "times_faster": ratios}
        print(json.dumps({**asdict(found), **numbers, **facts}, indent=2))
        return
    from rich import box
    from rich.table import Table

    height, width = found.size
    print(
        f"{found.model}, {width} x {height} pixels, {found.num_classes:,} classes; "
        f"{facts['device']}, {facts['threads']} threads, torch {facts['torch']}"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("", "s", "ratio", "MB", "detections"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    same = "the same" if found.detections else "nothing to compare"
    for side in found.seconds:
        is_graph = side in found.bytes
        table.add_row(
            side,
            f"{found.median(side):.4f}",
            f"{found.ratio(side):,.2f}x" if is_graph else "",
            f"{found.bytes[side] / 1e6:,.1f}" if is_graph else "",
            same if is_graph else str(found.detections),
        )
    print_table(table)
    print(
        "median seconds from resized pixels and class embeddings to detections; "
        f"ratio: {EAGER}'s time by this one, median over turns"
    )
