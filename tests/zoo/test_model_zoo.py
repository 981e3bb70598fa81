"""README's plug-in section on Detectron2's model zoo: each config builds with our heads, steps,
finds, gets other names, and finds those.

Random weights, one image of 128 px on a CPU, few proposals; networks deeper than ResNet-50 have 50
layers here, and all but three (AS_WIDE) half the zoo's channels. All else is the zoo's.
"""

import numpy as np
import pytest
import torch
from detectron2 import layers, model_zoo
from detectron2.config import get_cfg, instantiate
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints
from detectron2.utils.events import EventStorage
from omegaconf import OmegaConf

import ovd_d2
from ovd_d2.config_file import load_config
from ovd_d2.engine.setup import check_config
from ovd_d2.errors import OVDError
from ovd_d2.language import Vocabulary
from ovd_d2.modeling import get_vocabulary, set_vocabulary
from ovd_d2.modeling.classifiers import EmbeddingClassifier

FPN, C4, CASCADE = "OpenVocabROIHeads", "OpenVocabRes5ROIHeads", "OpenVocabCascadeROIHeads"
ZOO = {
    "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml": C4,
    "COCO-Detection/faster_rcnn_R_50_DC5_1x.yaml": FPN,
    "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml": FPN,
    "COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml": FPN,
    "COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x.yaml": FPN,
    "COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml": FPN,
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml": C4,
    "COCO-InstanceSegmentation/mask_rcnn_R_101_DC5_3x.yaml": FPN,
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml": FPN,
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x_giou.yaml": FPN,
    "COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x.yaml": FPN,
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml": FPN,
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml": FPN,
    "Cityscapes/mask_rcnn_R_50_FPN.yaml": FPN,
    "LVISv0.5-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml": FPN,
    "LVISv1-InstanceSegmentation/mask_rcnn_R_101_FPN_1x.yaml": FPN,
    "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml": CASCADE,
    "Misc/cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv.yaml": CASCADE,
    "Misc/mask_rcnn_R_50_FPN_1x_cls_agnostic.yaml": FPN,
    "Misc/mask_rcnn_R_50_FPN_1x_dconv_c3-c5.yaml": FPN,
    "Misc/mask_rcnn_R_50_FPN_3x_gn.yaml": FPN,
    "Misc/mask_rcnn_R_50_FPN_3x_syncbn.yaml": FPN,
    "Misc/panoptic_fpn_R_101_dconv_cascade_gn_3x.yaml": CASCADE,
    "Misc/scratch_mask_rcnn_R_50_FPN_3x_gn.yaml": FPN,
    "PascalVOC-Detection/faster_rcnn_R_50_C4.yaml": C4,
}
AS_WIDE = (
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
)
WIDTHS = (
    "RESNETS.STEM_OUT_CHANNELS", "RESNETS.RES2_OUT_CHANNELS", "RESNETS.WIDTH_PER_GROUP",
    "FPN.OUT_CHANNELS", "ROI_BOX_HEAD.FC_DIM", "ROI_BOX_HEAD.CONV_DIM", "ROI_MASK_HEAD.CONV_DIM",
    "SEM_SEG_HEAD.CONVS_DIM",
)  # fmt: skip
DIM, SIZE = 16, (96, 128)
FIRST = Vocabulary.from_names("cat, red mug, traffic light, tree, boat")
SECOND = Vocabulary.from_names("owl, lamp, kite, snail, drum, blue chair, hat")


def embeddings_file(folder, vocabulary):
    path = folder / f"{len(vocabulary)}.npy"
    np.save(path, np.random.default_rng(0).normal(size=(len(vocabulary), DIM)).astype(np.float32))
    return str(path)


def plugged_in(yaml, head, folder):
    """The zoo's config with the keys of README's plug-in section, made small."""
    cfg = get_cfg()
    ovd_d2.add_ovd_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file(yaml))
    cfg.merge_from_list([
        "MODEL.ROI_HEADS.NAME", head,
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True,
        "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True,
        "MODEL.OPEN_VOCAB.VOCABULARY", ", ".join(FIRST.names),
        "MODEL.OPEN_VOCAB.TEXT_EMBEDDINGS", embeddings_file(folder, FIRST),
        "MODEL.OPEN_VOCAB.EMBED_DIM", DIM,
        "MODEL.OPEN_VOCAB.LOGIT_SCALE", 5.0,  # random scores at 100 are 0 and 1
    ])  # fmt: skip
    cfg.merge_from_list([
        "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "",
        "DATASETS.TRAIN", (), "DATASETS.TEST", (),  # targets are places in the vocabulary
        "MODEL.RESNETS.DEPTH", 50,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN", 30, "MODEL.RPN.POST_NMS_TOPK_TEST", 10,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 5,
    ])  # fmt: skip
    if yaml not in AS_WIDE:
        for key in WIDTHS:
            room, own = key.split(".")
            cfg.MODEL[room][own] //= 2
        cfg.MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS = (256,) * 8
    return cfg


def sample(proposals=False) -> dict:
    """Two objects of the first vocabulary, with everything that any detector learns from."""
    target = Instances(SIZE)
    target.gt_boxes = Boxes(torch.tensor([[10.0, 10, 50, 60], [40, 20, 120, 90]]))
    target.gt_classes = torch.tensor([1, 4])
    masks = torch.zeros(2, *SIZE, dtype=torch.bool)
    masks[0, 10:60, 10:50] = masks[1, 20:90, 40:120] = True
    target.gt_masks = BitMasks(masks)
    points = torch.stack([torch.tensor([30.0, 40, 2]), torch.tensor([80.0, 50, 2])])
    target.gt_keypoints = Keypoints(points[:, None].repeat(1, 17, 1))
    made = {
        "image": torch.randint(0, 256, (3, *SIZE)).byte(),
        "height": SIZE[0],
        "width": SIZE[1],
        "instances": target,
        "sem_seg": torch.randint(0, 54, SIZE),
    }
    if proposals:
        found = Instances(SIZE)
        xy = torch.rand(20, 2) * 60
        found.proposal_boxes = Boxes(torch.cat([xy, xy + 10 + torch.rand(20, 2) * 25], dim=1))
        found.objectness_logits = torch.randn(20)
        made["proposals"] = found
    return made


def step(model, batch):
    """Losses and gradients that are finite, for every parameter."""
    model.train()
    with EventStorage():
        losses = model(batch)
    assert losses and all(torch.isfinite(value) for value in losses.values()), losses
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    projection = [m.projection.weight for m in model.modules() if type(m) is EmbeddingClassifier]
    assert projection and all(weight.grad.any() for weight in projection)
    return losses


@torch.no_grad()
def find(model, batch) -> Instances:
    model.eval()
    (found,) = model([{k: v for k, v in batch[0].items() if k not in ("instances", "sem_seg")}])
    found = found["instances"]
    assert len(found) > 0 and found.scores.isfinite().all()
    assert set(found.pred_classes.tolist()) <= set(range(len(get_vocabulary(model))))
    return found


def tame(model):
    """Random weights under norms that do nothing yet double the features in every residual block;
    after sixteen of them boxes leave the image and softmaxes are one-hot."""
    for module in model.modules():
        if isinstance(module, layers.CNNBlockBase) and hasattr(module, "conv3"):
            torch.nn.init.constant_(module.conv3.norm.weight, 0.1)


def step_find_swap_find(model, batch, folder) -> Instances:
    tame(model)
    assert get_vocabulary(model) == FIRST
    step(model, batch)
    before = find(model, batch)
    set_vocabulary(model, SECOND, embeddings_file(folder, SECOND))
    after = find(model, batch)
    assert get_vocabulary(model) == SECOND
    assert before.scores.shape != after.scores.shape or not before.scores.equal(after.scores)
    return after


@pytest.mark.parametrize(
    ("yaml", "head"),
    [pytest.param(*item, id=item[0]) for item in ZOO.items()],
)
def test_a_zoo_config_with_our_heads(yaml, head, tmp_path):
    cfg = plugged_in(yaml, head, tmp_path)
    model = build_model(cfg)
    assert type(model).__module__.startswith("detectron2.")  # the meta-architecture is not ours
    found = step_find_swap_find(model, [sample(cfg.MODEL.LOAD_PROPOSALS)], tmp_path)
    assert found.has("pred_masks") == cfg.MODEL.MASK_ON
    assert found.has("pred_keypoints") == cfg.MODEL.KEYPOINT_ON


def test_there_are_25_of_them():
    assert len(ZOO) == 25


def test_a_regnet_of_the_lazy_zoo(tmp_path):
    """Two lines per node: the classes, and what they need beside the zoo's arguments."""
    yaml = "COCO-InstanceSegmentation/mask_rcnn_regnetx_4gf_dds_fpn_1x.py"
    model = model_zoo.get_config(yaml).model
    model.proposal_generator.post_nms_topk = (30, 10)
    heads = model.roi_heads
    heads.batch_size_per_image, heads.mask_head.num_classes = 16, 1
    heads._target_ = "ovd_d2.modeling.OpenVocabROIHeads"
    heads.update(vocabulary=list(FIRST.names), class_embedder=embeddings_file(tmp_path, FIRST))
    heads.box_predictor._target_ = "ovd_d2.modeling.OpenVocabBoxPredictor"
    heads.box_predictor.test_score_thresh = 0.0
    heads.box_predictor.classifier = OmegaConf.create({
        "_target_": "ovd_d2.modeling.classifiers.EmbeddingClassifier",
        "in_features": 1024, "embed_dim": DIM, "logit_scale": 5.0,
    })  # fmt: skip
    assert step_find_swap_find(instantiate(model), [sample()], tmp_path).has("pred_masks")


@pytest.mark.parametrize(
    ("yaml", "head"),
    [
        ("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", C4),
        ("COCO-Detection/faster_rcnn_R_50_C4_1x.yaml", FPN),
        ("Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml", FPN),
        ("COCO-Detection/retinanet_R_50_FPN_1x.yaml", FPN),
    ],
)  # fmt: skip
def test_the_wrong_head_is_refused_when_the_config_is_read(yaml, head):
    nothing = ["DATASETS.TRAIN", "()", "DATASETS.TEST", "()", "MODEL.WEIGHTS", ""]
    file = model_zoo.get_config_file(yaml)
    with pytest.raises(OVDError, match=r"MODEL\.ROI_HEADS\.NAME"):
        check_config(load_config(file, ["MODEL.ROI_HEADS.NAME", head, *nothing]))
