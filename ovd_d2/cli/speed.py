"""``ovd speed``: our way and the usual one, measured side by side in one run.

One function per benchmark; what measures lies in the rooms.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ovd_d2.cli import speed_export, speed_mavl, speed_predict, speed_pretraining
from ovd_d2.cli.speed_tables import (
    VocabularyTable,
    blocks_table,
    inference_table,
    machine,
    print_table,
)
from ovd_d2.errors import OVDError

if TYPE_CHECKING:
    from ovd_d2.benchmarks.speed.detection_postprocessing import Cell

app = typer.Typer(
    help="Measure our way and the usual one side by side, on this machine.", no_args_is_help=True
)
app.command("predict")(speed_predict.command)
app.command("mavl")(speed_mavl.command)
_FOLDER = typer.Option(None, help="Where to work, about 1 GB; default: for temporary files.")
_STORE_ROWS = {
    "bytes": ("size", "MB"),
    "write": ("write", "s"),
    "read_in_order": ("read in file order", "s"),
    "read_at_random": ("read at random", "s"),
}
_JSON = typer.Option(False, "--json", help="Print one JSON object, not a table.")
app.command()(speed_export.export)
app.command()(speed_pretraining.pretraining)


@app.command()
def inference(
    classes: str = typer.Option("80,1203,20000,1000000", help="Numbers of classes, with commas."),
    proposals: int = typer.Option(1000, help="Proposals in the image."),
    topk: int = typer.Option(300, help="Detections per image."),
    repeats: int = typer.Option(5, help="Timed runs of each side, after a first one."),
    device: str = typer.Option("cpu", help="cpu, cuda, cuda:1, ..."),
    full: bool = typer.Option(
        False, "--full", help="Also Detectron2 on dense scores of 20,000 classes (minutes)."
    ),
    as_json: bool = _JSON,
    dim: int = typer.Option(512, min=1, help="Width of an embedding, where scores are made too."),
) -> None:
    """From boxes and scores to detections, against Detectron2's fast_rcnn_inference; and from
    embeddings to detections, against the bare product of all regions and classes."""
    numbers = _numbers("--classes", classes)
    from dataclasses import asdict

    from rich.console import Console

    from ovd_d2.benchmarks.speed.blocked_detection import MOST_DENSE_CLASSES, measure_blocks
    from ovd_d2.benchmarks.speed.detection_postprocessing import measure_inference

    console = Console(stderr=True)
    with console.status("") as status:
        cells = list(
            measure_inference(
                [number for number in numbers if number <= MOST_DENSE_CLASSES],
                proposals=proposals,
                topk=topk,
                repeats=repeats,
                full=full,
                device=device,
                progress=status.update,
            )
        )
        blocks = list(
            measure_blocks(
                numbers,
                proposals=proposals,
                dim=dim,
                topk=topk,
                repeats=repeats,
                device=device,
                progress=status.update,
            )
        )
    setting = {"proposals": proposals, "topk": topk, **machine(device)}
    if as_json:
        facts = {
            "cells": [_inference_facts(cell) for cell in cells],
            "dim": dim,
            "blocks": [{**asdict(cell), "ratio": cell.ratio} for cell in blocks],
        }
        print(json.dumps({**setting, **facts}, indent=2))
        return
    if cells:
        print_table(inference_table(cells, setting))
    if any(cell.median("detectron2") is None for cell in cells):
        print(
            "skipped: Detectron2 on more than 5 million pairs, which takes minutes (about 350 s "
            "for 20,000 classes x 1000 proposals on 2 cores); --full runs it."
        )
    print_table(blocks_table(blocks, {**setting, "dim": dim}))


@app.command()
def regions(
    images: int = typer.Option(4, help="Number of images, 640 x 480."),
    boxes: int = typer.Option(32, help="Regions per image."),
    batch: int = typer.Option(0, help="Crops at once on our side; 0: as ovd regions build."),
    repeats: int = typer.Option(3, help="Timed runs of each side, after a first one."),
    device: str = typer.Option("auto", help="cpu, cuda, ...; auto: the CPU, and a GPU if any."),
    as_json: bool = _JSON,
) -> None:
    """`ovd regions build` against PIL crops through CLIP one by one (random ViT-B/32)."""
    from dataclasses import asdict

    from rich.console import Console

    from ovd_d2.benchmarks.speed.region_embedding import SIDES, measure_regions, random_vit_b32

    results = []
    with Console(stderr=True).status("builds the model") as status:
        for name in _devices(device):
            results.append(
                measure_regions(
                    random_vit_b32(name),
                    images=images,
                    regions=boxes,
                    batch=batch,
                    repeats=repeats,
                    progress=status.update,
                )
            )
    kinds = ("build", "preprocessing")
    if as_json:
        facts = [
            {
                **asdict(result),
                **machine(result.device),
                "regions_per_second": {
                    what: {side: result.per_second(what, side) for side in SIDES} for what in kinds
                },
                "times_faster": {what: result.times_faster(what) for what in kinds},
            }
            for result in results
        ]
        print(json.dumps(facts, indent=2))
        return
    from rich import box
    from rich.table import Table

    facts = machine(results[0].device)
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=f"{images} images x {boxes} regions, random ViT-B/32, fp32; "
        f"{facts['threads']} threads, torch {facts['torch']}",
        caption="regions/s by the median run, ratio: median over pairs of runs; build: from JPEG "
        "files and boxes, ours to the flushed store; usual: PIL crop, CLIP's transform, batch of 1",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("device", "", "batch", "ours /s", "usual /s", "ratio", "least cosine"):
        table.add_column(name, justify="left" if name in ("device", "") else "right", no_wrap=True)
    for result in results:
        for what in kinds:
            build = what == "build"
            table.add_row(
                machine(result.device)["device"],
                what if build else "preprocessing alone",
                str(result.batch),
                *(f"{result.per_second(what, side):,.1f}" for side in SIDES),
                f"{result.times_faster(what):,.2f}x",
                f"{result.cosine:.5f}" if build else "",
            )
    print_table(table)


def _devices(wanted: str) -> list[str]:
    import torch

    if wanted == "auto":
        return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:  # unknown name; torch without CUDA
        raise OVDError(f"--device {wanted}: {str(error).splitlines()[0]}") from None
    return [wanted]


@app.command()
def store(
    images: int = typer.Option(1000, help="Number of images."),
    regions: int = typer.Option(300, help="Regions per image."),
    dim: int = typer.Option(512, help="Width of an embedding."),
    folder: Path | None = _FOLDER,
    as_json: bool = _JSON,
) -> None:
    """The region store on disk, against one pickle per image."""
    from dataclasses import asdict

    from rich.console import Console

    from ovd_d2.benchmarks.speed.region_store import bench_store

    with Console(stderr=True).status("writes and reads both ways"):
        result = bench_store(images, regions, dim, folder)
    ratios = {what: result.times_faster(what) for what in _STORE_ROWS if what != "bytes"}
    if as_json:
        print(json.dumps({**asdict(result), "times_faster": ratios}, indent=2))
        return
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=f"{images} images x {regions} regions x {dim}",
        title_justify="left",
        caption="pickles: fp32, not flushed; store: fp16, flushed to disk, with sha256; every byte "
        "read, from the page cache",
        caption_justify="left",
    )
    for name in ("", "pickle per image", "region store", "ratio"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for what, (label, unit) in _STORE_ROWS.items():
        theirs, ours = getattr(result.pickles, what), getattr(result.store, what)
        digits, scale = (1, 1e6) if unit == "MB" else (3, 1)
        table.add_row(
            label,
            f"{theirs / scale:,.{digits}f} {unit}",
            f"{ours / scale:,.{digits}f} {unit}",
            f"{result.times_faster(what):,.1f}x",
        )
    print_table(table)


@app.command()
def step(
    config_file: Path = typer.Option("configs/mini/vild.yaml", help="What to train."),
    regions: str = typer.Option("5,300", help="Teacher regions per image, with commas."),
    images: int = typer.Option(0, help="Per batch; 0: as the config says."),
    rounds: int = typer.Option(
        15, help="Steps of each kind, in turn, after two that do not count."
    ),
    as_json: bool = _JSON,
    opts: list[str] = typer.Argument(None, help="KEY value pairs for the config."),
) -> None:
    """What a teacher's regions cost in a training step, beside the same step without them and that
    of the same detector with Detectron2's own heads; what sharing one pass saves."""
    from tqdm import tqdm

    import ovd_d2
    from ovd_d2.benchmarks.speed.roi_pass import measure_roi_part
    from ovd_d2.benchmarks.speed.train_step import PLAIN, measure_step
    from ovd_d2.engine.setup import load_config, use_cpu_without_gpu

    ovd_d2.register()
    cfg = load_config(str(config_file), opts or [])
    use_cpu_without_gpu(cfg)
    counts = _numbers("--regions", regions)
    how = {
        "images": images,
        "rounds": rounds,
        "progress": lambda turns: tqdm(turns, desc="rounds", unit="round"),
    }
    result = measure_step(cfg, str(config_file), regions=counts, **how)
    parts = measure_roi_part(cfg, counts, **how)
    facts = {"config": result.config, "rounds": rounds, **machine(cfg.MODEL.DEVICE)}
    rows = result.table()
    if as_json:
        roi_part = [{**vars(part), "median_ratio": part.median_ratio} for part in parts]
        steps = {"steps": rows, "seconds": result.seconds, "roi_part": roi_part}
        print(json.dumps({**facts, **steps}, indent=2))
        return
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=f"{result.config}; {rounds} rounds; {facts['device']}, {facts['threads']} threads",
        title_justify="left",
        caption="ratios of the same round, median (quartiles)",
        caption_justify="left",
    )
    for name in ("regions per image", "median s", "to no regions", "to Detectron2's heads"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            "Detectron2's heads" if row["regions"] == PLAIN else str(row["regions"]),
            f"{row['median_seconds']:.3f}",
            _ratio(row["median_ratio"], row["quartiles"]),
            _ratio(row["median_ratio_to_plain"], row["quartiles_to_plain"]),
        )
    print_table(table)
    for part in parts:
        print(
            f"Pooler and box head, {part.regions} regions per image beside the proposals: one pass "
            f"takes {part.median_ratio:.3f} of the time of two."
        )


@app.command()
def vocabulary(
    config_file: list[Path] = typer.Option(
        ["configs/glip/glip_t_b.yaml", "configs/detclip/detclip_v2_t_o365_goldg_cc15m.yaml"],
        help="A GLIP or a DetCLIP; may be repeated.",
    ),
    classes: str = typer.Option("80,1203,20000", help="Numbers of classes, with commas."),
    size: str = typer.Option("480x640", help="Height and width of the image, in pixels."),
    repeats: int = typer.Option(3, help="Timed runs of each side, after a first one."),
    full: bool = typer.Option(
        False,
        "--full",
        help="The usual way on all captions, not on three; deep fusion beyond 5000 names.",
    ),
    as_json: bool = _JSON,
    opts: list[str] = typer.Argument(None, help="KEY value pairs for every config."),
) -> None:
    """Time and memory with many classes: GLIP against its whole model run again on every caption of
    40 names, DetCLIP against itself with 80 names."""
    from dataclasses import asdict

    from rich.console import Console

    import ovd_d2
    from ovd_d2.benchmarks.speed.vocabulary import measure_vocabulary
    from ovd_d2.engine.setup import load_config, use_cpu_without_gpu

    numbers, pixels = _numbers("--classes", classes), _numbers("--size", size, "x")
    if len(pixels) != 2:
        raise OVDError(f"--size {size}: give height and width, such as 480x640.")
    ovd_d2.register()
    configs = [load_config(str(file), opts or []) for file in config_file]
    for cfg in configs:
        use_cpu_without_gpu(cfg)
    setting = {
        "configs": [str(file) for file in config_file],
        "size": pixels,
        **machine(configs[0].MODEL.DEVICE),
    }
    table, cells = VocabularyTable(setting), []
    with Console(stderr=True).status("") as status:
        for cell in measure_vocabulary(
            configs, numbers, size=tuple(pixels), repeats=repeats, full=full, progress=status.update
        ):
            cells.append(cell)
            if not as_json:
                status.stop()  # it would take what is printed to stderr
                table.add(cell)
                status.start()
    if as_json:
        rows = [{**asdict(cell), "ratio": cell.ratio} for cell in cells]
        print(json.dumps({**setting, "cells": rows}, indent=2))
        return
    table.close()
    if any(cell.left_out for cell in cells):
        print("left out: GLIP with deep fusion beyond 5000 names (many minutes); --full runs it.")


def _ratio(median: float, quartiles: tuple[float, float]) -> str:
    return f"{median:.3f} ({quartiles[0]:.3f} to {quartiles[1]:.3f})"


def _numbers(option: str, text: str, separator: str = ",") -> list[int]:
    try:
        return [int(number) for number in text.split(separator)]
    except ValueError:
        wanted = "whole numbers with commas" if separator == "," else f"them as 1{separator}2"
        raise OVDError(f"{option} {text}: give {wanted}.") from None


def _inference_facts(cell: "Cell") -> dict[str, Any]:
    facts: dict[str, Any] = {
        "classes": cell.num_classes,
        "scores": cell.scores,
        "pairs_above_threshold": cell.pairs,
        "detections": cell.detections,
        "identical": cell.identical,
        "ratio": cell.ratio,
    }
    for side in ("ours", "detectron2"):
        facts[side] = {
            "median_seconds": cell.median(side),
            "seconds": cell.seconds.get(side, []),
            "peak_bytes": cell.peak_bytes.get(side),
        }
    return facts
