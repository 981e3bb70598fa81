"""Weights of timm networks from a file: whole and of the network, or one sentence."""

import pytest
import torch
from torch import nn

from ovd_d2.errors import OVDError
from ovd_d2.layers.timm_weights import load_timm_weights


def load(path):
    net = nn.Linear(3, 2)
    return net, load_timm_weights(net, "a-net", str(path), "MODEL.TIMM.WEIGHTS")


def test_a_classifier_beyond_the_network_is_left_out(tmp_path):
    given = {"weight": torch.ones(2, 3), "bias": torch.ones(2).double(), "fc.weight": torch.ones(1)}
    torch.save(given, tmp_path / "w.pth")
    net, count = load(tmp_path / "w.pth")
    assert count == 2 and net.weight.sum() == 6 and net.bias.sum() == 2


@pytest.mark.parametrize(
    "content, sentence",
    [
        ([1, 2], "holds no weights, but a list"),
        ({}, "lacks 2 weights of a-net"),
        ({"weight": torch.ones(3, 3), "bias": torch.ones(2)}, r"weight is no .* shape \(2, 3\)"),
        ({"weight": 1.0, "bias": torch.ones(2)}, "weight is no dense, real tensor"),
        ({"weight": torch.ones(2, 3), "bias": torch.ones(2, device="meta")}, "bias is no dense"),
        (b"text", "cannot be read as weights"),
    ],
)
def test_anything_else_is_one_sentence(tmp_path, content, sentence):
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(OVDError, match=sentence) as caught:
        load(path)
    assert "w.pth" in str(caught.value) and "\n" not in str(caught.value)
