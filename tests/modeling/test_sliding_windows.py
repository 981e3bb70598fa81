"""Scores by windows, scales and flips: golden numbers, and a plain loop over pixels."""

import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from ovd_d2.errors import OVDError
from ovd_d2.modeling.sliding_windows import MultiScaleScores, sliding_scores, window_starts

sys.path.append(str(Path(__file__).parent))

from lseg_golden import close, golden

CASES = {"all": None, "noflip": None, "s1": (1.0,), "s175": (1.75,), "s05": (0.5,)}


class StandIn:
    """The golden numbers' network: a convolution and a ramp that tells a window's places apart."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        values = golden("multi_eval")
        ramp = torch.linspace(-1, 1, 24)
        out = F.conv2d(x, values["w.kernel"], values["w.bias"], padding=1)
        return out + 0.3 * ramp[None, :] + 0.2 * ramp[:, None]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("image", ["landscape", "portrait", "square"])
def test_golden_scores_and_number_of_calls(image, case):
    values, network = golden("multi_eval"), StandIn()
    scales = CASES[case] or tuple(values["cfg.scales"].double().tolist())
    scores = MultiScaleScores(
        scales=scales,
        base=int(values["cfg.base_size"]),
        window=int(values["cfg.crop_size"]),
        stride=int(values["cfg.crop_size"]) * 2 // 3,
        flip=case not in ("noflip", "s05"),  # by n_forward: the windows alone
    )
    pixels = values[f"in.{image}"]
    found = scores(network, pixels, pixels.shape[-2:], pad_value=-1.0)
    assert close(found, values[f"{image}.{case}.scores"], 1e-5)
    assert network.calls == values[f"{image}.{case}.n_forward"]
    if case == "all":
        assert torch.equal(found.argmax(1), values[f"{image}.all.argmax"])


@pytest.mark.parametrize("size", [(5, 5), (8, 19), (11, 8), (23, 17)])
def test_overlaps_are_averaged(size):
    """Windows that answer with their call's number: a plain loop says which reach a pixel."""
    height, width = size
    calls = []

    def network(crop):
        calls.append(crop.shape[-2:])
        return torch.full((1, 1, *crop.shape[-2:]), float(len(calls)))

    found = sliding_scores(network, torch.zeros(1, 3, *size), window=8, stride=5)
    tops, lefts = (window_starts(s, 8, 5) for s in size)
    for y in range(height):
        for x in range(width):
            reach = [
                1 + i * len(lefts) + j
                for i, top in enumerate(tops)
                for j, left in enumerate(lefts)
                if top <= y < top + 8 and left <= x < left + 8
            ]
            assert reach and found[0, 0, y, x] == pytest.approx(sum(reach) / len(reach))
    assert set(calls) == {(8, 8)}


def test_the_last_window():
    assert window_starts(19, 8, 5) == [0, 5, 10, 15]
    assert window_starts(3, 8, 5) == window_starts(3, 8, 5, shift_last=True) == [0]
    for length, window, stride, starts in (
        (19, 8, 5, [0, 5, 10, 11]),
        (80, 64, 32, [0, 16]),
        (112, 64, 32, [0, 32, 48]),
        (96, 64, 32, [0, 32]),
        (64, 64, 32, [0]),
        (30, 64, 32, [0]),
        (65, 64, 64, [0, 1]),
    ):
        assert window_starts(length, window, stride, shift_last=True) == starts


@pytest.mark.parametrize("wrong", [{"scales": ()}, {"scales": (0.0,)}, {"stride": 481}], ids=str)
def test_windows_with_gaps_are_refused(wrong):
    with pytest.raises(OVDError, match="leave gaps"):
        MultiScaleScores(**wrong)
