"""``ovd speed pretraining``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ovd_d2.errors import OVDError

from .speed_tables import print_table

if TYPE_CHECKING:
    from ovd_d2.benchmarks.speed.pretraining import Costs

_CONFIG = typer.Option(..., help="A yaml of a GLIP, DetCLIP, CLIP or GroupViT.")
_GPU = typer.Option("a100", help="v100, a100 or h100: 125, 312 or 989 TFLOP/s in 16 bits.")
_UTILISATION = typer.Option(0.35, help="Share of that which is reached: an assumption.")
_STEPS = typer.Option(1, help="Timed steps; 0: none, operations and bytes alone.")
_SIZE = typer.Option("", help="Height and width of images with boxes; default: the mean area.")
_PIXEL = typer.Option(0.53, help="Bytes per pixel of a stored JPEG: an assumption (COCO's).")


def pretraining(
    config_file: Path = _CONFIG,
    gpu: str = _GPU,
    gpus: int = typer.Option(64, help="How many of them."),
    utilisation: float = _UTILISATION,
    images: int = typer.Option(1, help="Of a step here."),
    steps: int = _STEPS,
    size: str = _SIZE,
    bytes_per_pixel: float = _PIXEL,
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object, not a table."),
    opts: list[str] = typer.Argument(None, help="KEY value pairs for the config."),
) -> None:
    """What the schedule of a yaml costs: operations counted and bytes measured on one sample of
    each kind, here, with random weights; hours on GPUs, an estimate from these."""
    from rich.console import Console

    import ovd_d2
    from ovd_d2.benchmarks.speed.pretraining import Assumptions, measure_costs
    from ovd_d2.engine.setup import load_config

    assumed = Assumptions(gpu, gpus, utilisation, bytes_per_pixel)
    ovd_d2.register()
    cfg = load_config(str(config_file), opts or [])
    with Console(stderr=True).status("") as status:
        costs = measure_costs(
            cfg, str(config_file), opts or [], assumed,
            images=images, steps=steps, size=_pixels(size), progress=status.update,
        )  # fmt: skip
    if as_json:
        print(json.dumps(costs.facts(), indent=2))
        return
    _show(costs, amp=cfg.SOLVER.AMP.ENABLED)


def _pixels(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    try:
        high, wide = map(int, text.split("x"))
    except ValueError:
        raise OVDError(f"--size {text}: give height and width, such as 650x867.") from None
    return high, wide


def _show(costs: "Costs", *, amp: bool) -> None:
    from rich import box
    from rich.table import Table

    first = next(iter(costs.measured.values()))
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=f"{costs.config}: {first.parameters / 1e6:,.1f} M parameters, "
        f"{first.trained / 1e6:,.1f} M trained",
        title_justify="left",
        caption=f"measured with random weights: {first.device}, {first.threads} threads, torch "
        f"{first.torch}, {first.autocast or 'fp32'}; TFLOP: forward and backward, 2 per "
        "multiply-add; kept: by forward for backward; process: most memory",
        caption_justify="left",
    )
    for name in ("a sample of", "size", "TFLOP", "s", "kept MB", "process MB"):
        table.add_column(name, justify="left" if name.startswith("a ") else "right", no_wrap=True)
    for kind, one in costs.measured.items():
        seconds = one.seconds_per_sample
        table.add_row(
            kind,
            f"{one.size[0]} x {one.size[1]}",
            f"{one.flops_per_sample / 1e12:.3f}",
            "" if seconds is None else f"{seconds:.2f}",
            f"{one.saved_bytes_per_sample / 1e6:,.0f}",
            f"{one.peak_bytes / 1e6:,.0f}",
        )
    print_table(table)
    for part in costs.parts:
        print(
            f"{part.name or 'schedule'}: {part.iterations:,.0f} iterations of {part.batch:,} "
            f"{part.kind}, {part.samples / 1e6:,.1f} M samples"
        )
    _show_estimate(costs, amp=amp)


def _show_estimate(costs: "Costs", *, amp: bool) -> None:
    from ovd_d2.benchmarks.speed.pretraining import PEAK_TFLOPS

    assumed = costs.assumed
    print(
        f"all: {costs.flops / 1e18:,.3g} EFLOP. Estimate, if {assumed.utilisation:.0%} of "
        f"{PEAK_TFLOPS[assumed.gpu]:g} TFLOP/s are reached: {costs.gpu_hours:,.3g} "
        f"{assumed.gpu.upper()} hours, {costs.days:,.3g} days on {assumed.gpus}, "
        f"{costs.seconds_per_iteration:,.3g} s per iteration"
    )
    print(
        f"memory: {costs.state_bytes / 1e9:,.2f} GB of parameters, gradients and optimizer on "
        "every GPU, and what samples keep"
    )
    print(
        f"network: {costs.gradient_bytes / 1e6:,.0f} MB of gradients; each of {assumed.gpus} GPUs "
        f"sends {costs.sent_bytes / 1e6:,.0f} MB per step, "
        f"{costs.sent_bytes / costs.seconds_per_iteration / 1e9:,.3g} GB/s"
    )
    print(
        f"pictures, if a pixel takes {assumed.bytes_per_pixel:g} bytes: "
        f"{costs.read_bytes / 1e12:,.3g} TB read, "
        f"{costs.read_bytes / costs.days / 86400 / 1e6:,.3g} MB/s by all"
    )
    if not amp:
        print("note: SOLVER.AMP.ENABLED is False in this yaml; the estimate is for 16 bits.")
