"""Tables of ``ovd speed``, and what they say of the machine."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from ovd_d2.benchmarks.speed.detection_postprocessing import Cell
    from ovd_d2.benchmarks.speed.vocabulary import Cell as VocabularyCell


def machine(device: str) -> dict[str, Any]:
    """Name of the device, threads and version of torch."""
    import torch

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def inference_table(cells: list["Cell"], setting: dict[str, Any]) -> "Table":
    """A row per cell; ``setting`` is what all share."""
    from rich import box
    from rich.table import Table

    from ovd_d2.benchmarks.speed.detection_postprocessing import SCORE_THRESH

    thresholds = ", ".join(f"{name} {value:g}" for name, value in SCORE_THRESH.items())
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=f"{setting['proposals']} proposals, {setting['topk']} detections; "
        f"{setting['device']}, {setting['threads']} threads, torch {setting['torch']}",
        caption="median seconds per image; MB: peak memory beyond the inputs; "
        f"scores above: {thresholds}",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("classes", "scores", "pairs", "ours s", "detectron2 s", "ratio"):
        table.add_column(name, justify="left" if name == "scores" else "right", no_wrap=True)
    for name in ("ours MB", "detectron2 MB", "detections"):
        table.add_column(name, justify="right", no_wrap=True)
    for cell in cells:
        theirs = cell.median("detectron2")
        same = {None: "not compared", True: "identical", False: "DIFFERENT"}[cell.identical]
        table.add_row(
            f"{cell.num_classes:,}",
            cell.scores,
            f"{cell.pairs:,}",
            f"{cell.median('ours'):.4f}",
            "skipped" if theirs is None else f"{theirs:.4f}",
            "" if theirs is None else f"{cell.ratio:,.1f}x",
            megabytes(cell, "ours"),
            megabytes(cell, "detectron2"),
            f"{cell.detections} {same}",
        )
    return table


def vocabulary_table(cells: list["VocabularyCell"], setting: dict[str, Any]) -> "Table":
    """A row per cell; ``setting`` is what all share."""
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=f"{setting['config']}, random weights, {'x'.join(map(str, setting['size']))}; "
        f"{setting['device']}, {setting['threads']} threads, torch {setting['torch']}",
        caption="median seconds per image; usual: backbone, FPN, text and head again for every "
        "caption of 40 names, padded, extrapolated where some were run; text: ours, once for a "
        "vocabulary; MB: peak memory beyond the model; detections: those of the captions run",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("classes", "our way", "captions", "ours s", "text s", "usual s", "usual captions"):
        table.add_column(name, justify="left" if name == "our way" else "right", no_wrap=True)
    for name in ("ratio", "ours MB", "usual MB", "detections"):
        table.add_column(name, justify="right", no_wrap=True)
    for cell in cells:
        same = {None: "not compared", 0: "the same"}.get(cell.differing)
        run = "" if cell.usual_run == cell.usual_captions else f"{cell.usual_run} of "
        table.add_row(
            f"{cell.num_classes:,}",
            cell.way,
            str(cell.captions),
            f"{cell.median('ours'):.2f}",
            f"{cell.text_seconds:.2f}",
            f"{cell.median('usual'):.2f}",
            f"{run}{cell.usual_captions}",
            f"{cell.ratio:,.2f}x",
            megabytes(cell, "ours"),
            megabytes(cell, "usual"),
            f"{cell.detections} {same or f'{cell.differing} DIFFERENT'}",
        )
    return table


def megabytes(cell: "Cell | VocabularyCell", side: str) -> str:
    """Peak memory of a side; "" where the system does not tell."""
    peak = cell.peak_bytes.get(side)
    return "" if peak is None else f"{peak / 1e6:,.1f}"


def print_table(table: "Table") -> None:
    """To stdout."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:  # never cut a line in a log
        console = Console(width=200)
    console.print(table)
