"""A backbone that remembers what its frozen stages made of an image computes what it would have."""

import copy
import logging

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from test_timm_fpn import make_cfg

from ovd_d2.errors import OVDError
from ovd_d2.layers.frozen_features import FrozenFeatures

STAGES = {"tf_efficientnet_lite0": 3, "resnet18": 3, "convnext_atto": 2}


def backbone(megabytes, name="tf_efficientnet_lite0", **keys):
    torch.manual_seed(0)
    cfg = make_cfg(NAME=name, FREEZE_STAGES=STAGES[name], FROZEN_CACHE_MB=megabytes, **keys)
    cfg.MODEL.DEVICE = "cpu"
    net = build_backbone(cfg, ShapeSpec(channels=3)).train()
    return net.to(memory_format=torch.channels_last)


def images(*seeds, size=(64, 96)):
    made = [torch.randn(3, *size, generator=torch.Generator().manual_seed(s)) for s in seeds]
    return torch.stack(made).contiguous(memory_format=torch.channels_last)


def first_of(net):
    """Numbers of images that its first layer sees, as they come."""
    seen = []
    layer = next(m for m in net.bottom_up.net.modules() if isinstance(m, torch.nn.Conv2d))
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    return seen


@pytest.mark.parametrize("name", STAGES)
def test_features_and_gradients_are_the_same(name):
    plain, cached = backbone(0, name), backbone(50, name)
    seen = first_of(cached)
    for seeds in ((1, 2, 3), (3, 4), (4, 1, 1, 2), (5, 5), (2,)):
        for net in (plain, cached):
            net.zero_grad()
            features = net(images(*seeds))
            sum(f.square().mean() for f in features.values()).backward()
        again = cached(images(*seeds))  # nothing is new
        for level, wanted in plain(images(*seeds)).items():
            assert torch.equal(again[level], wanted) and again[level].stride() == wanted.stride()
        grads = dict(plain.named_parameters())
        for key, parameter in cached.named_parameters():
            assert parameter.requires_grad == grads[key].requires_grad
            if parameter.requires_grad:
                torch.testing.assert_close(parameter.grad, grads[key].grad, rtol=1e-5, atol=1e-7)
    assert seen == [3, 0, 1, 0, 0, 0, 2, 0, 0, 0]
    assert plain.state_dict().keys() == cached.state_dict().keys()


def test_what_differs_a_little_or_has_another_shape_is_new():
    net = backbone(50)
    seen = first_of(net)
    one = images(1)
    net(one)
    one[0, 2, 63, 95] += 1e-6
    for other in (one, images(1).flip(3), images(1).reshape(1, 3, 96, 64)):
        net(other)
    assert seen == [1, 1, 1, 1]


def test_a_full_memory_takes_no_more():
    net = backbone(50)
    known = net.bottom_up._frozen_features
    net(images(1))
    used = 50 * 2**20 - known.left
    assert used == 40 * 8 * 12 * 4
    known.left = 2 * used + 1
    seen = first_of(net)
    for _ in range(2):
        net(images(1, 2, 3, 4))
    assert seen == [3, 1] and len(known) == 3 and known.left == 1


def test_evaluation_remembers_nothing_even_after_a_forward_that_broke_off():
    net = backbone(50)
    known, wanted = net.bottom_up._frozen_features, backbone(0).eval()(images(1, 2))
    handle = net.bottom_up.net.blocks[0].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        net(images(3))
    handle.remove()
    seen = first_of(net)
    for _ in range(2):
        found = net.eval()(images(1, 2))
        assert all(torch.equal(found[level], wanted[level]) for level in wanted)
    assert seen == [2, 2] and len(known) == 0
    net.train()(images(3))
    assert len(known) == 1


def test_a_copy_of_the_model_has_a_memory_of_its_own():
    net = backbone(50)
    net(images(1))
    twin = copy.deepcopy(net)
    counts = [first_of(one) for one in (net, twin)]
    twin(images(1, 2))
    net(images(2))
    assert counts == [[1], [1]]


def test_loaded_weights_empty_it_also_in_a_copy():
    plain, cached = backbone(0), backbone(50)
    cached(images(1))
    twin = copy.deepcopy(cached)
    state = {k: v + 0.1 if "conv_stem" in k else v for k, v in plain.state_dict().items()}
    plain.load_state_dict(state)
    wanted = plain(images(1))
    for net in (cached, twin):
        before = net(images(1))
        net.load_state_dict(state)
        found = net(images(1))
        assert all(torch.equal(found[level], wanted[level]) for level in wanted)
        assert not torch.equal(found["p3"], before["p3"])


def test_where_it_cannot_be():
    cfg = make_cfg(FROZEN_CACHE_MB=5)
    cfg.MODEL.DEVICE = "cpu"
    with pytest.raises(OVDError, match="FROZEN_CACHE_MB is for frozen stages: set .*FREEZE_STAGES"):
        build_backbone(cfg, ShapeSpec(channels=3))
    with pytest.raises(OVDError, match="OUT_STRIDES has 4, which comes before the end"):
        backbone(5, OUT_STRIDES=[4, 8, 16, 32])
    cfg = make_cfg(NAME="vit_tiny_patch16_224", FROZEN_CACHE_MB=5)
    cfg.MODEL.BACKBONE.NAME = "build_timm_vit_backbone"
    with pytest.raises(OVDError, match="FROZEN_CACHE_MB is not for a ViT"):
        build_backbone(cfg, ShapeSpec(channels=3))


def test_on_a_gpu_there_is_none(caplog):
    cfg = make_cfg(FREEZE_STAGES=2, FROZEN_CACHE_MB=5)
    cfg.MODEL.DEVICE = "cuda"
    with caplog.at_level(logging.WARNING):
        net = build_backbone(cfg, ShapeSpec(channels=3))
    assert net.bottom_up._frozen_features is None
    assert "FROZEN_CACHE_MB is for a CPU" in caplog.text


def test_rows_come_in_the_order_of_the_images():
    layer = torch.nn.Identity()
    known = FrozenFeatures(layer, layer, 1)
    rows = torch.arange(5.0).reshape(5, 1, 1, 1)
    assert torch.equal(layer(known.missing(rows[[3, 1]])), rows[[3, 1]])
    new = known.missing(rows[[0, 1, 4, 3]])
    assert torch.equal(new, rows[[0, 4]])
    assert torch.equal(layer(new), rows[[0, 1, 4, 3]])
