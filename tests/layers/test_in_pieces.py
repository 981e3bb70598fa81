import pytest
import torch
from torch import nn

from ovd_d2.layers import in_pieces
from ovd_d2.layers.in_pieces import InPieces


@pytest.fixture
def layers(monkeypatch):
    monkeypatch.setattr(in_pieces, "PIECE", 2 * 3 * 8 * 6)  # two images
    torch.manual_seed(0)
    return [nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5).eval(), nn.ReLU()]


def batches_seen(module):
    seen = []
    module[0].register_forward_hook(lambda _, args, out: seen.append(len(args[0])))
    return seen


@pytest.mark.parametrize("images, pieces", [(0, [0]), (1, [1]), (2, [2]), (5, [2, 2, 1])])
def test_without_gradient_a_few_images_at_a_time(layers, images, pieces):
    module, x = InPieces(*layers).requires_grad_(False), torch.randn(images, 3, 8, 6)
    seen = batches_seen(module)
    torch.testing.assert_close(module(x), nn.Sequential(*layers)(x))
    assert seen == [*pieces, images]  # those of the pieces, then the plain one


def test_images_larger_than_a_piece_go_one_by_one(layers):
    module = InPieces(*layers).requires_grad_(False)
    seen = batches_seen(module)
    module(torch.randn(2, 3, 40, 40))
    assert seen == [1, 1]


@pytest.mark.parametrize("who", ["input", "weights"])
def test_with_a_gradient_all_at_once(layers, who):
    module = InPieces(*layers).requires_grad_(who == "weights")
    x = torch.randn(5, 3, 8, 6, requires_grad=who == "input")
    seen = batches_seen(module)
    y = module(x)
    assert seen == [5] and y.requires_grad
    with torch.no_grad():
        module(x)
    assert seen == [5, 2, 2, 1]


def test_a_traced_graph_takes_any_batch(layers):
    module = InPieces(*layers).requires_grad_(False)
    x = torch.randn(5, 3, 8, 6)
    traced = torch.jit.trace(module, torch.randn(2, 3, 8, 6))
    torch.testing.assert_close(traced(x), module(x))
    assert torch.jit.script(module)(x).shape == (5, 5, 8, 6)
