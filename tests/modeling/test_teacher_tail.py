"""The second head that is the teacher's own last stages."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from ovd_d2.config_file import load_config
from ovd_d2.encoders.exported import teacher_tower
from ovd_d2.errors import OVDError
from ovd_d2.structures import Supervision

YAML = "configs/mini/vild_teacher_tail.yaml"
STAGE = 5  # blocks of the tower up to stride 16


def make_model(*overrides):
    return build_model(load_config(YAML, ["MODEL.OPEN_VOCAB.VOCABULARY", "cat, dog", *overrides]))


@pytest.fixture(scope="module")
def model():
    return make_model()


def map_of(tower, x):
    x = tower.bn1(tower.conv_stem(x))
    for block in tower.blocks[:STAGE]:
        x = block(x)
    return x


@torch.no_grad()
def test_on_the_map_of_a_whole_crop_it_is_the_teacher(model):
    tower, branch = teacher_tower("mini-teacher").eval(), model.roi_heads.image_branch
    x = torch.randn(3, 3, 64, 64)
    pooled = map_of(tower.backbone, x)
    found = branch.region_embeddings(torch.cat([torch.randn(3, 64, 4, 4), pooled], dim=1))
    torch.testing.assert_close(found, nn.functional.normalize(tower(x), dim=1), atol=1e-4, rtol=0)


@torch.no_grad()
def test_each_branch_sees_its_own_channels(model):
    heads, x = model.roi_heads, torch.randn(2, 64 + 112, 4, 4)
    text, image = heads.region_features(x), heads.image_branch.region_embeddings(x)
    x[:, :64] += 1
    assert not torch.equal(heads.region_features(x), text)
    assert torch.equal(heads.image_branch.region_embeddings(x), image)
    x[:, 64:] += 1
    assert not torch.equal(heads.image_branch.region_embeddings(x), image)


@torch.no_grad()
def test_regions_are_pooled_from_the_map_below_the_fpn(model):
    images = torch.randn(1, 3, 64, 64)
    features = model.eval().backbone(images)
    expected = map_of(model.backbone.bottom_up.net, images)
    assert torch.equal(features["stride16"], expected)
    pooled = model.roi_heads.pool(features, [Boxes(torch.tensor([[0.0, 0, 64, 64]]))])
    assert pooled.shape == (1, 64 + 112, 4, 4)
    means = pooled[0, 64:].mean((1, 2)), expected[0].mean((1, 2))
    assert torch.corrcoef(torch.stack(means))[0, 1] > 0.9


def test_it_learns_and_what_it_goes_on_from_does_not(model):
    model.train().zero_grad()
    target = Instances((64, 64))
    target.gt_boxes = Boxes(torch.tensor([[5.0, 10, 30, 40], [30, 30, 60, 60]]))
    target.gt_classes = torch.tensor([0, -1])
    target.supervision = torch.tensor([int(Supervision.BOX), int(Supervision.TEACHER_REGION)])
    target.teacher_embedding = torch.randn(2, 384)
    images = ImageList.from_tensors([torch.randn(3, 64, 64)])
    with EventStorage():
        features = model.backbone(images.tensor)
        proposal = Instances((64, 64), proposal_boxes=target.gt_boxes)
        proposal.objectness_logits = torch.zeros(2)
        _, losses = model.roi_heads(images, features, [proposal], [target])
        losses["loss_distill_l1"].backward()
    assert all(p.grad is not None for p in model.roi_heads.image_branch.parameters())
    assert not any(p.grad is not None and p.grad.any() for p in model.backbone.parameters())
    norms = [m for m in model.roi_heads.image_branch.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(m.training for m in norms)


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        (("MODEL.TIMM.FREEZE_STAGES", 3), "FREEZE_STAGES is 3: stride16, .* set it to 4 or more"),
        (("MODEL.IMAGE_BRANCH.IN_FEATURE", "stride64"), 'is "stride64", the backbone has stride8'),
        (("MODEL.IMAGE_BRANCH.IN_FEATURE", ""), 'IN_FEATURE is ""; TeacherTailBranch needs one of'),
        (("MODEL.IMAGE_BRANCH.TEACHER", "openai-clip:ViT-B/32"), "not openai-clip:ViT-B/32"),
        (("MODEL.TIMM.WEIGHTS", "packaged:efficientnet-lite0"), "WEIGHTS is packaged:"),
        (("MODEL.IMAGE_BRANCH.NAME", ""), 'not for MODEL.IMAGE_BRANCH.NAME ""'),
        (("MODEL.ROI_HEADS.NAME", "OpenVocabCascadeROIHeads"), "has no second pooler"),
        (("MODEL.BACKBONE.NAME", "build_retinanet_timm_fpn_backbone"), "hands on"),
    ],
)
def test_what_does_not_go_together_is_named(overrides, sentence):
    with pytest.raises(OVDError, match=sentence):
        make_model(*overrides)
