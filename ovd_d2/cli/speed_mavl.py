"""``ovd speed mavl``: several questions about an image that is read once."""

import json

import typer

from ovd_d2.errors import OVDError

from .speed_tables import machine, print_table

_QUESTIONS = typer.Option("", help="Between commas; default: RKD's four wordings of all objects.")
_OPTS = typer.Argument(None, help="KEY value pairs for the config.")


def command(
    config_file: str = typer.Option("configs/mavl/mavl_r101.yaml", help="A MAVL."),
    size: str = typer.Option("480x640", help="Height and width of the image, in pixels."),
    questions: str = _QUESTIONS,
    repeats: int = typer.Option(3, help="Timed runs of each side, after a first one."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object, not a table."),
    opts: list[str] = _OPTS,
) -> None:
    """MAVL asked several questions: the image read once, against the whole model again for each
    question, as the public code does (random weights)."""
    from dataclasses import asdict

    from rich.console import Console

    import ovd_d2
    from ovd_d2.benchmarks.speed.mavl_questions import measure_questions
    from ovd_d2.engine.setup import load_config, use_cpu_without_gpu
    from ovd_d2.pseudo_labelling import OBJECT_QUERIES

    try:
        height, width = map(int, size.split("x"))
    except ValueError:
        raise OVDError(f"--size {size}: give height and width, such as 480x640.") from None
    ovd_d2.register()
    cfg = load_config(config_file, opts or [])
    use_cpu_without_gpu(cfg)
    words = tuple(one.strip() for one in questions.split(",") if one.strip()) or OBJECT_QUERIES
    with Console(stderr=True).status("") as status:
        found = measure_questions(
            cfg, size=(height, width), questions=words, repeats=repeats, progress=status.update
        )
    facts = {"config": config_file, **machine(cfg.MODEL.DEVICE)}
    if as_json:
        medians = {side: found.median(side) for side in found.seconds}
        numbers = {"median_seconds": medians, "ratio": found.ratio}
        print(json.dumps({**facts, **asdict(found), **numbers}, indent=2))
        return
    from rich import box
    from rich.table import Table

    print(
        f"{config_file}, random weights, {size}, {len(words)} questions, {found.object_queries} "
        f"object queries; {facts['device']}, {facts['threads']} threads, torch {facts['torch']}"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("", "s", "MB", "ratio", "boxes"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    same = f"{found.differing} DIFFERENT" if found.differing else "the same"
    rows = (
        ("image once", "ours", f"{found.ratio:.2f}x", same),
        ("all of it per question", "usual", "", str(found.boxes)),
    )
    for label, side, ratio, boxes in rows:
        peak = found.peak_bytes[side]
        memory = "" if peak is None else f"{peak / 1e6:,.1f}"
        table.add_row(label, f"{found.median(side):.3f}", memory, ratio, boxes)
    print_table(table)
    print(
        f"largest difference of any box {found.box_difference:.1e} pixels, of any score "
        f"{found.score_difference:.1e}"
    )
    print(
        "median seconds per image, from pixels and words to merged boxes, in turn; ratio: median "
        "over runs, each with the mean of the two runs around it; MB: peak memory beyond the model"
    )
