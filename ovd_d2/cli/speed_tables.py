"""Tables of ``ovd speed``, and what they say of the machine."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from ovd_d2.benchmarks.speed.blocked_detection import BlockedCell
    from ovd_d2.benchmarks.speed.detection_postprocessing import Cell
    from ovd_d2.benchmarks.speed.vocabulary_ways import Cell as VocabularyCell


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


def blocks_table(cells: list["BlockedCell"], setting: dict[str, Any]) -> "Table":
    """A row per cell; ``setting`` is what all share."""
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=f"in blocks of classes, embeddings of {setting['dim']} numbers\n"
        f"{setting['proposals']} proposals, {setting['topk']} detections; {setting['device']}, "
        f"{setting['threads']} threads, torch {setting['torch']}",
        caption="median seconds per image, in turn with the product of all regions and classes; "
        "MB: peak memory beyond the embeddings; detections: against a table of all scores "
        "(boxes, classes and order), and the largest relative difference of scores",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("classes", "scores", "ours s", "product s", "ratio", "MB", "detections"):
        table.add_column(name, justify="left" if name == "scores" else "right", no_wrap=True)
    for cell in cells:
        same = "not compared"
        if cell.same is not None:
            same = f"{'identical' if cell.same else 'DIFFERENT'}, {cell.difference:.1e}"
        table.add_row(
            f"{cell.num_classes:,}",
            cell.kind,
            f"{cell.median('ours'):.3f}",
            f"{cell.median('product'):.3f}",
            f"{cell.ratio:.2f}",
            "" if cell.peak_bytes is None else f"{cell.peak_bytes / 1e6:,.1f}",
            f"{cell.detections} {same}",
        )
    return table


class VocabularyTable:
    """A table of ``ovd speed vocabulary`` that is printed to stdout row by row, as cells come."""

    # Heading, width and alignment; widths are fixed, as rows to come are unknown.
    COLUMNS = (
        ("classes", 7, "right"),
        ("model", 7, "left"),
        ("way", 17, "left"),
        ("captions", 8, "right"),
        ("s", 8, "right"),
        ("text s", 8, "right"),
        ("beside it", 19, "left"),
        ("its s", 8, "right"),
        ("faster", 8, "right"),
        ("to 80 names", 11, "right"),
        ("MB", 8, "right"),
        ("its MB", 8, "right"),
        ("detections", 22, "right"),
    )
    NOTES = (
        "Median seconds per image. Beside it, in turn: of GLIP the usual way, which is backbone, "
        "FPN, text and head again for every caption of 40 names, padded, extrapolated where some "
        "were run; of DetCLIP itself with 80 names. faster, to 80 names: medians over runs, each "
        "with the mean of the two runs around it. text: encoding the names, once for a vocabulary. "
        "MB: peak memory beyond model and encoded names. detections: of GLIP those of the captions "
        "run."
    )

    def __init__(self, setting: dict[str, Any]) -> None:
        """
        Args:
            setting: what all cells share.
        """
        self._setting = setting
        self._rows = 0

    def add(self, cell: "VocabularyCell") -> None:
        """Prints the row of a cell, and the heading before the first one."""
        setting = self._setting
        if not self._rows:
            print(
                f"{', '.join(setting['configs'])}, random weights, "
                f"{'x'.join(map(str, setting['size']))}; {setting['device']}, "
                f"{setting['threads']} threads, torch {setting['torch']}"
            )
            print_table(self._table([]))
        self._rows += 1
        print_table(self._table(self._texts(cell)))

    def close(self) -> None:
        """Prints what the columns mean."""
        print(f"\n{self.NOTES}")

    def _table(self, row: list[str]) -> "Table":
        """The heading, or a row alone."""
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, show_header=not row)
        for heading, width, justify in self.COLUMNS:
            table.add_column(heading, width=width, justify=justify, no_wrap=True)
        if row:
            table.add_row(*row)
        return table

    @staticmethod
    def _texts(cell: "VocabularyCell") -> list[str]:
        names = [f"{cell.num_classes:,}", cell.model, cell.way]
        if cell.left_out:
            return [*names, "", "left out"]
        run = "" if cell.usual_run == cell.usual_captions else f", {cell.usual_run} run"
        usual = cell.usual_captions is not None
        same = {None: "not compared", 0: "the same"}.get(cell.differing)
        return [
            *names,
            "" if cell.captions is None else str(cell.captions),
            f"{cell.median('ours'):.2f}",
            f"{cell.text_seconds:.2f}",
            f"{cell.usual_captions} captions{run}" if usual else cell.beside,
            f"{cell.median('beside'):.2f}",
            f"{cell.ratio:,.2f}x" if usual else "",
            "" if usual else f"{1 / cell.ratio:,.3f}",
            megabytes(cell, "ours"),
            megabytes(cell, "beside"),
            f"{cell.detections} {same or f'{cell.differing} DIFFERENT'}",
        ]


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
