"""What a pre-training costs: counted, measured and summed up."""

import json
import sys
from pathlib import Path

import pytest
import torch
import warm_processes
from torch import nn

from ovd_d2.benchmarks.speed.pretraining import Assumptions, Costs, Part, measure_costs, schedule
from ovd_d2.benchmarks.speed.pretraining_step import (
    Measured,
    WithoutProducts,
    counted,
    saved_for_backward,
)
from ovd_d2.errors import OVDError

OVD = [sys.executable, "-m", "ovd_d2.cli.app"]
YAML = "configs/mini/detclip_pairs.yaml"


def of(path, *opts):
    import ovd_d2
    from ovd_d2.engine.setup import load_config

    ovd_d2.register()
    return load_config(path, list(opts))


class Small(nn.Module):
    """A convolution, a product and attention: of 2 x 3 x 8 x 8 pixels."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 6)

    def forward(self, x):
        rows = self.linear(self.conv(x).flatten(2).transpose(1, 2))  # 2 x 64 x 6
        heads = rows[:, None].expand(-1, 2, -1, -1)
        return nn.functional.scaled_dot_product_attention(heads, heads, heads).sum()


def test_counts_what_a_plain_sum_counts_with_and_without_products():
    torch.manual_seed(0)
    model, x = Small(), torch.randn(2, 3, 8, 8)
    conv, linear = 2 * 2 * 64 * 4 * 27, 2 * 2 * 64 * 4 * 6
    attention = 2 * 2 * 2 * 2 * 64 * 64 * 6  # two products, 2 images, 2 heads
    # Backward: of the convolution the weights alone, its input needs no gradient; of attention
    # 5 products for 2, as the scores are computed again.
    wanted = conv * 2 + linear * 3 + attention * 3.5
    found = []
    for mode in (WithoutProducts(), torch.enable_grad()):
        model.zero_grad()
        with mode, counted() as flops:
            model(x).backward()
        found.append(flops.get_total_flops())
    assert found == [wanted, wanted]
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())  # the second time


def test_saved_bytes_are_storages_once_without_parameters():
    model, x = nn.Linear(8, 4, bias=False), torch.randn(16, 8, requires_grad=True)
    with saved_for_backward(model) as saved:
        y = model(x).exp()  # the input, and what exp gave
        (y + y[:2].repeat(8, 1)).sum().backward()
    assert sum(saved.values()) == 4 * (16 * 8 + 16 * 4)


def measured(kind, flops):
    return Measured(
        kind, (10, 10), 2, "cpu", 1, "2", "", parameters=3, trained=2, parameter_bytes=12,
        gradient_bytes=8, optimizer_bytes=16, flops=flops,
    )  # fmt: skip


def test_sums_and_estimates():
    parts = [
        Part("a", 0, "boxes", (640, 480), 4, 100.0),
        Part("b", 1, "pairs", (10, 20), 50, 10.0),
    ]
    assumed = Assumptions("a100", gpus=4, utilisation=0.5, bytes_per_pixel=0.1)
    of_kind = {"boxes": measured("boxes", 6e12), "pairs": measured("pairs", 2e9)}
    costs = Costs("x", [], parts, of_kind, assumed)
    assert costs.samples == 900 and costs.iterations == 110
    assert costs.flops == 400 * 3e12 + 500 * 1e9
    assert costs.gpu_hours == pytest.approx(costs.flops / 156e12 / 3600)
    assert costs.days * 4 * 24 == pytest.approx(costs.gpu_hours)
    assert costs.seconds_per_iteration * 110 == pytest.approx(costs.gpu_hours / 4 * 3600)
    assert (costs.sent_bytes, costs.state_bytes) == (12, 36)
    assert costs.read_bytes == pytest.approx(0.1 * (400 * 640 * 480 + 500 * 200))


def test_schedules_of_the_yamls():
    (one,) = schedule(of("configs/glip/glip_t_a.yaml"))
    assert (one.kind, one.size, one.batch) == ("boxes", (650, 867), 64)
    parts = schedule(of("configs/detclip/detclip_v2_l_o365_goldg_cc15m.yaml"))
    assert [(p.kind, p.batch) for p in parts] == [("boxes", 256)] * 2 + [("pairs", 6144)]
    assert parts[0].size == (648, 864) and parts[2].size == (320, 320)
    assert parts[2].samples == pytest.approx(12 * 13e6, rel=0.01)  # 12 epochs of 13 M pairs
    with pytest.raises(OVDError, match="META_ARCHITECTURE is GeneralizedRCNN"):
        schedule(of("configs/mini/vild.yaml"))


@pytest.mark.parametrize(
    ("options", "said"),
    [({"gpu": "abacus"}, "--gpu abacus"), ({"gpus": 0}, "--gpus 0"),
     ({"utilisation": 2.0}, "--utilisation 2"), ({"bytes_per_pixel": 0.0}, "--bytes-per-pixel")],
)  # fmt: skip
def test_assumptions_that_cannot_be(options, said):
    with pytest.raises(OVDError, match=said):
        Assumptions(**options)


def test_numbers_that_cannot_be():
    with pytest.raises(OVDError, match="--images must be 1"):
        measure_costs(of(YAML), YAML, [], Assumptions(), images=0)


@pytest.mark.slow
def test_as_a_process():
    words = ["speed", "pretraining", "--config-file", YAML, "--size", "64x64", "--images", "2",
             "--steps", "0", "--gpu", "h100", "--gpus", "8", "--json"]  # fmt: skip
    opts = ["DATASETS.SOURCES", "[]", "SOLVER.MAX_ITER", "10"]
    done = warm_processes.run([*OVD, *words, *opts], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    one = facts["measured"]["boxes"]
    assert (one["size"], one["images"], one["seconds"]) == ([64, 64], 2, [])
    assert one["optimizer_bytes"] >= 2 * one["gradient_bytes"] > 0
    assert one["flops"] > 1e9 and one["saved_bytes"] > 1e5 and one["peak_bytes"] > 1e8
    batch = facts["parts"][0]["batch"]
    assert facts["follows"]["flops"] == 10 * batch * one["flops"] / 2
    assert facts["assumed"]["peak_tflops"] == 989


def test_the_page_has_the_numbers_that_were_kept():
    """The table of docs/scale.md, made again from docs/pretraining_cost.json."""
    docs = Path(__file__).parents[2] / "docs"
    page = (docs / "scale.md").read_text(encoding="utf-8")
    for kept in json.loads((docs / "pretraining_cost.json").read_text(encoding="utf-8")):
        measured, follows = list(kept["measured"].values()), kept["follows"]

        def hours(gpu, flops=follows["flops"]):
            return flops / Assumptions(gpu=gpu).flops_per_second / 3600

        numbers = [
            measured[0]["parameters"] / 1e6,
            *(one["flops"] / one["images"] / 1e12 for one in measured),
            *(one["saved_bytes"] / one["images"] / 1e9 for one in measured),
            follows["state_bytes"] / 1e9, follows["samples"] / 1e6, follows["flops"] / 1e18,
            hours("v100"), hours("a100"), hours("h100"),
            follows["gradient_bytes"] / 1e6, follows["read_bytes"] / 1e12,
        ]  # fmt: skip
        (line,) = [row for row in page.splitlines() if row.startswith(f"| {kept['model']} |")]
        cells = [part for cell in line.split("|")[2:-1] for part in cell.split(", ")]
        assert len(cells) == len(numbers), line
        for cell, number in zip(cells, numbers):
            decimals = len(cell.strip().partition(".")[2])
            assert cell.strip() == f"{number:,.{decimals}f}", (kept["model"], cell)
