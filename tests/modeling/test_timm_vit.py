"""A plain ViT as a pyramid: golden numbers of positions and levels, other sizes, other networks."""

import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

from ovd_d2 import add_ovd_config
from ovd_d2.errors import OVDError
from ovd_d2.modeling.backbone.reassemble import STRIDES, Reassemble
from ovd_d2.modeling.backbone.timm_vit import resized_positions

sys.path.append(str(Path(__file__).parent))

from lseg_golden import below, close, golden

VALUES = "dpt_decoder"
CHANNELS = (8, 12, 16, 20)
NAMES = {"0.project.0": "readout.project", "3": "reduce", "4": "resize"}
READOUTS = [("p16", "project"), ("p16", "add"), ("p16", "ignore"), ("p32", "project")]


def ours(name: str) -> str:
    module, _, kind = name.rpartition(".")
    return f"{NAMES[module]}.{kind}"


@pytest.mark.parametrize("size", [(4, 6), (7, 5), (4, 4)])
def test_golden_positions(size):
    found = resized_positions(golden(VALUES)["posembed.in"], size)
    assert close(found, golden(VALUES)[f"posembed.out_{size[0]}x{size[1]}"])


@pytest.mark.parametrize("level", [1, 2, 3, 4])
@pytest.mark.parametrize(("patch", "readout"), READOUTS)
def test_golden_levels(patch, readout, level):
    values, side = below(golden(VALUES), f"reassemble.{patch}."), int(patch[1:])
    stride, channels = STRIDES[level - 1], CHANNELS[level - 1]
    module = Reassemble(24, channels, patch=side, stride=stride, readout=readout)
    state = below(values, f"w.act_postprocess{level}.")
    state = {ours(k): v for k, v in state.items()}
    if readout != "project":
        state = {k: v for k, v in state.items() if not k.startswith("readout")}
    module.load_state_dict(state)
    tokens = values[f"in.tokens{level}"].clone().requires_grad_()
    out = module(tokens, (64 // side, 96 // side))
    assert close(out, values[f"{readout}.layer_{level}"])
    if readout != "project":
        return
    (out * values[f"in.upstream{level}"]).sum().backward()
    assert close(tokens.grad, values[f"project.grad_tokens{level}"], 5e-5)
    for key, expected in below(values, f"project.grad.act_postprocess{level}.").items():
        assert close(module.get_parameter(ours(key)).grad, expected, 5e-5), key


def build(**keys):
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_timm_vit_backbone"
    cfg.MODEL.TIMM.NAME = "vit_tiny_patch16_384"
    cfg.MODEL.TIMM.VIT.BLOCKS = [0, 1, 2, 3]
    cfg.MODEL.TIMM.VIT.CHANNELS = list(CHANNELS)
    for key, value in keys.items():
        (cfg.MODEL.TIMM.VIT if key in cfg.MODEL.TIMM.VIT else cfg.MODEL.TIMM)[key] = value
    return build_backbone(cfg, ShapeSpec(channels=3))


@pytest.mark.parametrize("keys", [{}, {"CHECKPOINT": True}, {"READOUT": "add"}], ids=str)
def test_maps_of_any_size_and_a_gradient_for_every_weight(keys):
    backbone = build(**keys).train()
    assert len(backbone.vit.blocks) == 4  # those behind the last one that is read are gone
    maps = backbone(torch.randn(2, 3, 64, 96))
    for (name, spec), c in zip(backbone.output_shape().items(), CHANNELS):
        assert maps[name].shape == (2, c, 64 // spec.stride, 96 // spec.stride)
    sum(m.square().sum() for m in maps.values()).backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None] == []


def test_frozen_stages_have_no_gradient():
    backbone = build(FREEZE_STAGES=3)
    frozen = {n for n, p in backbone.vit.named_parameters() if not p.requires_grad}
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight"} < frozen
    assert {n.split(".")[1] for n in frozen if n.startswith("blocks")} == {"0", "1"}


def test_weights_from_a_file_of_the_whole_network(tmp_path):
    import timm

    whole = timm.create_model("vit_tiny_patch16_384")
    torch.save(whole.state_dict(), tmp_path / "vit.pth")
    backbone = build(WEIGHTS=str(tmp_path / "vit.pth"))
    theirs = whole.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in backbone.vit.state_dict().items())
    # at the size it was made for, the tokens are those of the whole network
    images = torch.randn(1, 3, 384, 384)
    hidden = []
    whole.blocks[3].register_forward_hook(lambda *args: hidden.append(args[2]))
    with torch.no_grad():
        whole.eval()(images)
        assert torch.allclose(backbone.eval().tokens(images)[3], hidden[0], atol=1e-5)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"NAME": "resnet18"}, "must be a plain ViT"),
        ({"NAME": "vit_small_patch8_224"}, "must be a plain ViT"),
        ({"NAME": "deit_tiny_distilled_patch16_224"}, "must be a plain ViT"),
        ({"NAME": "vit_of_nobody"}, "is not a timm model"),
        ({"BLOCKS": [0, 1, 2, 12]}, r"BLOCKS is \[0, 1, 2, 12\].*from 0 to 11"),
        ({"BLOCKS": [0, 2, 1, 3]}, "rising"),
        ({"CHANNELS": [8, 8]}, "CHANNELS has 2 values"),
        ({"READOUT": "mean"}, "READOUT is 'mean'"),
        ({"FREEZE_STAGES": 6}, "FREEZE_STAGES is 6, the network has 5 stages"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(keys, message):
    with pytest.raises(OVDError, match=message):
        build(**keys)
