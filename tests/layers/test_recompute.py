"""Activation checkpointing: the same numbers, fewer kept tensors, batch norms that move once."""

import copy

import pytest
import torch
from torch import nn

from ovd_d2.encoders.image_towers import build_image_tower
from ovd_d2.encoders.text_towers import build_text_tower
from ovd_d2.errors import OVDError
from ovd_d2.layers.recompute import RecomputingSequential

CAPTIONS = ["a cat", "two dogs on a red mug", "the sky"]
VIT = {"kind": "clip_vit", "dim": 16, "image_size": 32, "patch": 8, "width": 64, "layers": 3}
RESNET = {"kind": "clip_resnet", "dim": 16, "image_size": 32, "layers": [3, 4, 3, 2], "width": 8}


def image_tower(settings, checkpoint):
    torch.manual_seed(0)
    tower = build_image_tower(settings, checkpoint=checkpoint)
    for name, parameter in tower.named_parameters():  # those of CLIP's last norms are 0
        if name.endswith("bn3.weight"):
            nn.init.ones_(parameter)
    return tower, torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def text_tower(checkpoint):
    torch.manual_seed(0)
    tower = build_text_tower(
        "transformer", 16, width=32, heads=2, layers=3, context=77, checkpoint=checkpoint
    )
    return tower, CAPTIONS


MAKERS = {
    "vit": lambda checkpoint: image_tower(VIT, checkpoint),
    "resnet": lambda checkpoint: image_tower(RESNET, checkpoint),
    "text": text_tower,
}


def kept_bytes(tower, data):
    """``tower(data)``, and the bytes of activations that it keeps for the backward pass."""
    storages = {}

    def note(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = tower(data)
    own = {value.untyped_storage().data_ptr() for value in tower.state_dict().values()}
    return result, sum(size for place, size in storages.items() if place not in own)


@pytest.mark.parametrize("kind", MAKERS)
def test_same_numbers_and_gradients_from_less_memory(kind):
    found = {}
    for checkpoint in (False, True):
        tower, data = MAKERS[kind](checkpoint)
        out, kept = kept_bytes(tower, data)
        (out * torch.arange(16)).sum().backward()
        grads = {name: p.grad for name, p in tower.named_parameters()}
        assert all(grad is not None for grad in grads.values())
        found[checkpoint] = (out.detach(), grads, copy.deepcopy(tower.state_dict()), kept)
    (out, grads, state, kept), (out2, grads2, state2, kept2) = found[False], found[True]
    assert torch.equal(out, out2)
    assert list(state) == list(state2)  # names too, and statistics of batch norms
    for name, value in state.items():
        assert torch.equal(value, state2[name]), name
    for name, grad in grads.items():
        torch.testing.assert_close(grads2[name], grad, atol=1e-6, rtol=1e-5)
    assert kept2 < 0.6 * kept, (kept2, kept)


def test_statistics_move_once_per_step():
    block = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    twin = copy.deepcopy(block)
    sequence = RecomputingSequential(block)
    x = torch.randn(8, 3, requires_grad=True)
    sequence(x).square().sum().backward()
    twin(x).sum()
    assert block[1].num_batches_tracked == 1 and block[1].track_running_stats
    assert torch.equal(block[1].running_mean, twin[1].running_mean)
    assert torch.equal(block[1].running_var, twin[1].running_var)


def test_evaluation_and_no_grad_keep_nothing():
    tower, data = MAKERS["vit"](True)
    plain, _ = MAKERS["vit"](False)
    with torch.no_grad():
        out, kept = kept_bytes(tower.eval(), data)
    assert kept == 0 and torch.equal(out, plain.eval()(data).detach())


def test_towers_without_it_say_so():
    with pytest.raises(OVDError, match="not for timm"):
        build_image_tower(
            {"kind": "timm", "name": "resnet18", "dim": 8, "image_size": 32}, checkpoint=True
        )
    sizes = {"width": 16, "heads": 2, "layers": 1, "context": 16, "checkpoint": True}
    with pytest.raises(OVDError, match="not for trained:minilm"):
        build_text_tower("trained:minilm", 8, **sizes)
