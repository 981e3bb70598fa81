"""Heads with norm after every layer, and the constants of batch norms."""

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from torch import nn

from ovd_d2.engine.trainer import OpenVocabTrainer
from ovd_d2.errors import OVDError
from ovd_d2.inference.open_detector import inference_config, open_detector
from ovd_d2.modeling.batch_norm import set_batch_norm_constants
from ovd_d2.modeling.proposal_generator import RPNHeadWithNorm
from ovd_d2.modeling.roi_heads import BoxHeadWithNorm, MaskHeadWithNorm

NORMED = (
    "MODEL.RPN.HEAD_NAME", "RPNHeadWithNorm", "MODEL.RPN.NORM", "BN",
    "MODEL.ROI_BOX_HEAD.NAME", "BoxHeadWithNorm", "MODEL.ROI_BOX_HEAD.NORM", "BN",
    "MODEL.ROI_MASK_HEAD.NAME", "MaskHeadWithNorm", "MODEL.ROI_MASK_HEAD.NORM", "BN",
    "MODEL.BATCH_NORM.MOMENTUM", 0.003, "MODEL.BATCH_NORM.EPS", 1e-4,
)  # fmt: skip


def rpn_head(num_convs: int = 2) -> RPNHeadWithNorm:
    return RPNHeadWithNorm(
        norm="BN", num_levels=2, in_channels=4, num_anchors=3, conv_dims=[-1] * num_convs
    )


@pytest.mark.parametrize("num_convs", [1, 2])
def test_rpn_levels_share_convolutions_and_not_norms(num_convs):
    """The scale of one level's features is normalised away, and touches no other level."""
    head = rpn_head(num_convs)
    first, second = torch.randn(2, 2, 4, 8, 8)
    plain, scaled = head([first, second]), head([first, 100 * second])
    assert plain[0][0].shape == (2, 3, 8, 8) and plain[1][1].shape == (2, 12, 8, 8)
    for ours, expected in zip(scaled, plain):
        assert torch.equal(ours[0], expected[0])
        torch.testing.assert_close(ours[1], expected[1], rtol=1e-2, atol=1e-3)
    counts = [sum(p.numel() for p in m.parameters()) for m in (head.conv, head.norms)]
    assert counts == [num_convs * (4 * 4 * 9 + 4), 2 * num_convs * 2 * 4]


def test_rpn_head_is_the_standard_one_but_for_the_norms():
    from detectron2.modeling.proposal_generator.rpn import StandardRPNHead

    stock = StandardRPNHead(in_channels=4, num_anchors=3, conv_dims=[-1, -1])
    head = rpn_head().eval()
    missing, unexpected = head.load_state_dict(stock.state_dict(), strict=False)
    assert unexpected == [] and all(name.startswith("norms.") for name in missing)
    set_batch_norm_constants(head, eps=1e-12)  # running statistics 0 and 1: the identity
    features = [torch.randn(1, 4, 8, 8), torch.randn(1, 4, 4, 4)]
    for ours, theirs in zip(head(features), stock(features)):
        torch.testing.assert_close(ours, theirs)


def test_box_head_norms_its_vectors_too():
    head = BoxHeadWithNorm(ShapeSpec(channels=3, height=2, width=2), conv_dims=[4],
                           fc_dims=[8, 6], conv_norm="BN")  # fmt: skip
    names = [name for name, _ in head.named_children()]
    assert names[2:] == ["fc1", "fc_norm1", "fc_relu1", "fc2", "fc_norm2", "fc_relu2"]
    seen = []
    head.fc_norm2.register_forward_hook(lambda *call: seen.append(call[-1]))
    out = head(torch.randn(50, 3, 2, 2))
    assert head.output_shape.channels == 6
    torch.testing.assert_close(seen[0].mean(dim=0), torch.zeros(6), rtol=0, atol=1e-5)
    torch.testing.assert_close(out, seen[0].relu())
    assert head(torch.randn(0, 3, 2, 2)).shape == (0, 6)  # no region in a batch,
    assert torch.isfinite(head(torch.randn(1, 3, 2, 2))).all()  # or one


def test_mask_head_norms_its_deconvolution_too():
    head = MaskHeadWithNorm(ShapeSpec(channels=3, height=4, width=4), num_classes=1,
                            conv_dims=[5, 5], conv_norm="BN")  # fmt: skip
    names = [name for name, _ in head.named_children()]
    assert names == ["mask_fcn1", "deconv", "deconv_norm", "deconv_relu", "predictor"]
    assert head.layers(torch.randn(2, 3, 4, 4)).shape == (2, 1, 8, 8)


def test_constants_reach_every_batch_norm_and_no_other():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.SyncBatchNorm(2), FrozenBatchNorm2d(2, eps=3e-3))
    set_batch_norm_constants(model)
    assert [(m.momentum, m.eps) for m in model[:2]] == [(0.1, 1e-5)] * 2
    set_batch_norm_constants(model, momentum=0.003, eps=1e-4)
    assert [(m.momentum, m.eps) for m in model[:2]] == [(0.003, 1e-4)] * 2
    assert model[2].eps == 3e-3
    with pytest.raises(OVDError, match="MODEL.BATCH_NORM.MOMENTUM is 1.5"):
        set_batch_norm_constants(model, momentum=1.5)
    with pytest.raises(OVDError, match="MODEL.BATCH_NORM.EPS is nan"):
        set_batch_norm_constants(model, eps=float("nan"))


def test_trainer_and_predictor_build_with_them(zoo_cfg, tmp_path):
    cfg = zoo_cfg("fpn", 5, *NORMED)
    trained = OpenVocabTrainer.build_model(cfg.clone())
    torch.save({"model": trained.state_dict()}, tmp_path / "model.pth")
    opened = open_detector(inference_config(cfg, "cpu"), tmp_path / "model.pth")
    for model in (trained, opened):
        heads = (model.roi_heads.box_head, model.roi_heads.mask_head,
                 model.proposal_generator.rpn_head)  # fmt: skip
        for head in heads:
            norms = [m for m in head.modules() if isinstance(m, nn.BatchNorm2d)]
            assert norms and {(m.momentum, m.eps) for m in norms} == {(0.003, 1e-4)}


def test_a_norm_that_the_head_would_not_have_is_refused(zoo_cfg):
    with pytest.raises(OVDError, match="set MODEL.RPN.HEAD_NAME RPNHeadWithNorm"):
        OpenVocabTrainer.build_model(
            zoo_cfg("fpn", 5, "MODEL.RPN.NORM", "BN",
                    "MODEL.PROPOSAL_GENERATOR.NAME", "MixedSupervisionRPN")
        )  # fmt: skip
    with pytest.raises(OVDError, match="MODEL.RPN.NORM is empty"):
        OpenVocabTrainer.build_model(zoo_cfg("fpn", 5, "MODEL.RPN.HEAD_NAME", "RPNHeadWithNorm"))
