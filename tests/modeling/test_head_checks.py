"""Heads that do not go with the detector, or parts that do not go together, are named."""

import pytest
import torch
from detectron2 import model_zoo
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import (
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    MaskRCNNConvUpsampleHead,
)
from small_detectors import DIM, make_embeddings, make_vocabulary

from ovd_d2.config_file import load_config
from ovd_d2.engine.setup import check_config
from ovd_d2.errors import OVDError
from ovd_d2.modeling import OpenVocabBoxPredictor, OpenVocabROIHeads
from ovd_d2.modeling.classifiers import EmbeddingClassifier
from ovd_d2.modeling.roi_heads import DistilledImageBranch, RegionDistiller, ScoreRule

NAME = "MODEL.ROI_HEADS.NAME"
CASCADE_YAML = "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml"


@pytest.mark.parametrize(
    ("kind", "head", "better"),
    [
        ("fpn", "OpenVocabRes5ROIHeads", "OpenVocabROIHeads"),
        ("cascade", "OpenVocabRes5ROIHeads", "OpenVocabCascadeROIHeads"),
        ("c4", "OpenVocabROIHeads", "OpenVocabRes5ROIHeads"),
        ("c4", "OpenVocabCascadeROIHeads", "OpenVocabRes5ROIHeads"),
    ],
)
def test_the_head_to_use_is_named(zoo_cfg, kind, head, better):
    """When the heads are built, and already when train_net.py checks the config."""
    cfg = zoo_cfg(kind, 5, NAME, head)
    for door in (build_model, check_config):
        with pytest.raises(OVDError, match=f"{NAME} is {head}.*set {NAME} .*{better}"):
            door(cfg)


def test_the_c4_head_on_a_dilated_c5_detector(zoo_cfg):
    cfg = zoo_cfg("c4", 5)
    cfg.merge_from_file(model_zoo.get_config_file("COCO-Detection/faster_rcnn_R_50_DC5_1x.yaml"))
    cfg.MODEL.ROI_HEADS.NAME = "OpenVocabRes5ROIHeads"
    with pytest.raises(OVDError, match=r"res5.*OpenVocabROIHeads"):
        build_model(cfg)


def test_a_pyramid_without_a_box_head_and_a_c4_with_keypoints(zoo_cfg):
    with pytest.raises(OVDError, match=r"MODEL.ROI_BOX_HEAD.NAME FastRCNNConvFCHead"):
        build_model(zoo_cfg("fpn", 5, "MODEL.ROI_BOX_HEAD.NAME", ""))
    with pytest.raises(OVDError, match="KEYPOINT_ON False"):
        build_model(zoo_cfg("c4", 5, "MODEL.KEYPOINT_ON", True))


def test_a_plain_head_on_a_cascades_yaml_is_noticed(tmp_path):
    """Only the name that it replaces says so, on the command line or in a _BASE_ file."""
    yaml = model_zoo.get_config_file(CASCADE_YAML)
    own = tmp_path / "own.yaml"
    own.write_text(f"_BASE_: {yaml}\nMODEL:\n  ROI_HEADS:\n    NAME: OpenVocabROIHeads\n")
    listed = tmp_path / "listed.yaml"
    listed.write_text("_BASE_: [own.yaml]\nSEED: 3\n")
    wanted = rf"{NAME} is OpenVocabROIHeads.*CascadeROIHeads.*set {NAME} OpenVocabCascadeROIHeads"
    for file, opts in ((yaml, [NAME, "OpenVocabROIHeads"]), (own, []), (listed, [])):
        with pytest.raises(OVDError, match=wanted):
            load_config(str(file), opts)
    for opts in (
        [NAME, "OpenVocabCascadeROIHeads"],
        [NAME, "StandardROIHeads", NAME, "OpenVocabROIHeads"],  # who means it can say it
    ):
        assert opts[-1] == load_config(yaml, opts).MODEL.ROI_HEADS.NAME
    plain = model_zoo.get_config_file("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")
    load_config(plain, [NAME, "OpenVocabROIHeads"])


def box_predictor(cls=OpenVocabBoxPredictor, **kwargs):
    given = {"box2box_transform": Box2BoxTransform(weights=(10, 10, 5, 5)), **kwargs}
    if cls is OpenVocabBoxPredictor:
        given["classifier"] = EmbeddingClassifier(8, DIM)
    return cls(ShapeSpec(channels=8), **given)


def heads(mask_classes=1, **kwargs) -> OpenVocabROIHeads:
    """FPN heads from explicit arguments."""
    pooler = ROIPooler(output_size=7, scales=(0.25,), sampling_ratio=0, pooler_type="ROIAlignV2")
    shape = ShapeSpec(channels=4, height=7, width=7)
    return OpenVocabROIHeads(**{
        "batch_size_per_image": 8,
        "positive_fraction": 0.25,
        "proposal_matcher": Matcher([0.5], [0, 1]),
        "box_in_features": ["p2"],
        "box_pooler": pooler,
        "box_head": FastRCNNConvFCHead(shape, conv_dims=[], fc_dims=[8]),
        "box_predictor": box_predictor(),
        "mask_in_features": ["p2"],
        "mask_pooler": pooler,
        "mask_head": MaskRCNNConvUpsampleHead(shape, num_classes=mask_classes, conv_dims=[4, 4]),
        "vocabulary": make_vocabulary(3),
        "class_embedder": make_embeddings(make_vocabulary(3)),
        **kwargs,
    })  # fmt: skip


def image_branch() -> DistilledImageBranch:
    head = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(196, 8))
    return DistilledImageBranch(head, EmbeddingClassifier(8, DIM), RegionDistiller(weight=1.0))


def test_explicit_arguments_that_go_together():
    assert heads().num_classes == heads(num_classes=80).num_classes == 3
    branch = image_branch()
    heads(image_branch=branch, score_rule=ScoreRule(combine="ensemble"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (lambda: {"mask_classes": 3}, r"mask_head predicts 3 masks.*num_classes=1"),
        (
            lambda: {"box_predictor": box_predictor(FastRCNNOutputLayers, num_classes=3)},
            "box_predictor is a FastRCNNOutputLayers.*OpenVocabBoxPredictor",
        ),
        (lambda: {"score_rule": ScoreRule(combine="ensemble")}, "needs an image_branch"),
        (
            lambda: {
                "region_tasks": [RegionDistiller(weight=1.0)],
                "image_branch": image_branch(),
            },
            "region_tasks has a RegionDistiller.*image_branch.*give one of them",
        ),
        (lambda: {"vocabulary": 3}, "vocabulary is 3"),
        (lambda: {"class_embedder": 3}, "class_embedder is a int"),
    ],
)
def test_explicit_arguments_that_do_not_go_together_are_named(arguments, words):
    with pytest.raises(OVDError, match=words):
        heads(**arguments())


def test_a_box_predictor_whose_boxes_classes_own_is_refused():
    box_predictor(num_classes=80, cls_agnostic_bbox_reg=True)  # as a model-zoo node says it
    with pytest.raises(OVDError, match="cls_agnostic_bbox_reg is False"):
        box_predictor(cls_agnostic_bbox_reg=False)
