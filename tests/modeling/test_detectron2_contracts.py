"""What Detectron2's own tests ask of its ROI heads (test_fast_rcnn, test_roi_heads, test_model_e2e,
test_export_torchscript), asked of ours."""

import pytest
import torch
from detectron2.export import scripting_with_instances
from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from small_detectors import DIM, KINDS, make_batch, make_embeddings, make_target, make_vocabulary
from small_detectors import training_losses as losses_of

from ovd_d2.modeling import OpenVocabBoxPredictor, set_vocabulary
from ovd_d2.modeling.classifiers import EmbeddingClassifier
from ovd_d2.modeling.roi_heads.image_label_supervision import ImageLabelSupervision
from ovd_d2.modeling.test_time_augmentation import _detectron2s_merge

ALL_SCORES = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
DISTIL = ("MODEL.REGION_DISTILLATION.WEIGHT", 0.5)
FIELDS = {
    "objectness_logits": torch.Tensor,
    "proposal_boxes": Boxes,
    "pred_boxes": Boxes,
    "scores": torch.Tensor,
    "pred_classes": torch.Tensor,
    "pred_masks": torch.Tensor,
}
SCRIPTED = {
    "fpn": ("fpn",),
    "c4": ("c4",),
    "sigmoid": ("fpn", "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True, "MODEL.OPEN_VOCAB.USE_BIAS", True,
                "MODEL.OPEN_VOCAB.BACKGROUND", "zero"),
    "ensemble": ("fpn", *DISTIL, "MODEL.IMAGE_BRANCH.NAME", "DistilledImageBranch"),
    "vild-image": ("c4", *DISTIL, "MODEL.OPEN_VOCAB.TRAIN_CLASSIFIER", False),
}  # fmt: skip


def predictor(**kwargs) -> OpenVocabBoxPredictor:
    made = OpenVocabBoxPredictor(
        ShapeSpec(channels=10),
        box2box_transform=Box2BoxTransform(weights=(10, 10, 5, 5)),
        classifier=EmbeddingClassifier(10, DIM),
        **kwargs,
    )
    vocabulary = make_vocabulary(5)
    made.set_vocabulary(vocabulary, make_embeddings(vocabulary))
    return made


@pytest.mark.parametrize("settings", [{}, {"use_sigmoid_ce": True}, {"train_classifier": False}])
def test_no_image_at_all_is_a_loss_of_0_with_a_graph(settings):
    """test_fast_rcnn.test_fast_rcnn_empty_batch; with the federated loss below."""
    ours = predictor(**settings)
    with EventStorage():
        predictions = ours(torch.randn(0, 10, requires_grad=True))
        losses = ours.losses(predictions, [])
        assert losses.keys() == {"loss_cls", "loss_box_reg"}
        assert all(value == 0 for value in losses.values())
        sum(losses.values()).backward()
        assert all(p.grad is not None for p in ours.parameters())
        found, _ = ours.inference(predictions, [])
    assert found == []


def test_no_image_at_all_under_the_federated_loss():
    ours = predictor(use_sigmoid_ce=True, use_fed_loss=True)
    with EventStorage():
        assert ours.losses(ours(torch.randn(0, 10)), [])["loss_cls"] == 0


def test_no_image_at_all_before_the_other_parts(build):
    nothing = torch.zeros(0, 16, 7, 7)
    for branch in ("DistilledImageBranch", "LabelledImageBranch"):
        model = build("fpn", 5, *DISTIL, "MODEL.IMAGE_BRANCH.NAME", branch)
        with EventStorage():
            heads = model.roi_heads
            losses = heads.image_branch.losses(heads.box_predictor, nothing, [])
        assert losses and all(value == 0 for value in losses.values())
        sum(losses.values()).backward()
    nothing = torch.zeros(0, 10, requires_grad=True)
    (loss,) = ImageLabelSupervision(weight=1.0).losses(predictor(), nothing, []).values()
    loss.backward()
    assert loss == 0


@pytest.mark.parametrize("num_classes", [1, 200])
def test_boxes_can_be_traced(num_classes):
    """test_fast_rcnn.test_predict_boxes_tracing and test_predict_probs_tracing."""
    ours = predictor()
    vocabulary = make_vocabulary(num_classes)
    ours.set_vocabulary(vocabulary, make_embeddings(vocabulary))
    proposal = Instances((10, 10))
    proposal.proposal_boxes = Boxes(torch.tensor([[0.8, 1.1, 3.2, 2.8], [2.3, 2.5, 7.0, 8.0]]))

    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.ours = ours

        def forward(self, x):
            predictions = self.ours(x)
            boxes = self.ours.predict_boxes(predictions, [proposal])
            return boxes[0], self.ours.predict_probs(predictions, [proposal])[0]

    traced = torch.jit.trace(Both(), torch.randn(2, 10))
    x = torch.randn(2, 10)
    for one, other in zip(traced(x), Both()(x)):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("what", SCRIPTED)
def test_the_whole_detector_can_be_scripted(build, what):
    """test_roi_heads.test_StandardROIHeads_scriptability and test_export_torchscript: the same
    detections, bit by bit, on another size than the first, and the classes of that moment."""
    kind, *opts = SCRIPTED[what]
    model = build(kind, 5, *ALL_SCORES, *opts).eval()
    scripted = scripting_with_instances(model, FIELDS)
    with torch.no_grad():
        for size in ((96, 128), (64, 64)):
            image = torch.rand(3, *size) * 255
            ours = model.inference([{"image": image}], do_postprocess=False)[0]
            theirs = scripted.inference([{"image": image}], do_postprocess=False)[0]
            assert len(ours) > 0
            for name, value in ours.get_fields().items():
                other = getattr(theirs, name)
                value, other = getattr(value, "tensor", value), getattr(other, "tensor", other)
                assert torch.equal(value, other), name


@pytest.mark.parametrize("head", ["OpenVocabCascadeROIHeads", "CascadeROIHeads"])
def test_a_cascade_can_be_scripted_by_neither(build, head):
    """If Detectron2's can one day, so must ours."""
    model = build("cascade", 5, "MODEL.ROI_HEADS.NAME", head).eval()
    with pytest.raises(RuntimeError, match="CascadeROIHeads"):
        scripting_with_instances(model, FIELDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("half", [False, True], ids=["empty", "half-empty"])
def test_images_without_annotations(build, kind, half):
    """test_model_e2e.test_empty_data and test_half_empty_data."""
    model = build(kind)
    first = make_target([[10, 10, 50, 60]], [1]) if half else make_target([], [])
    losses = losses_of(model, make_batch([first, make_target([], [], (96, 127))]))
    sum(losses.values()).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    model.eval()
    with torch.no_grad():
        assert len(model(make_batch([make_target([], []), make_target([], [], (96, 127))]))) == 2


@pytest.mark.parametrize("kind", ["fpn", "c4"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_features_that_are_not_finite_are_no_detections(build, kind, value):
    """test_model_e2e.test_roiheads_inf_nan_data, also with a second head. (A cascade stops between
    its stages, in ours as in Detectron2's: "Box tensor contains infinite or NaN".)"""
    for opts in ((), (*DISTIL, "MODEL.IMAGE_BRANCH.NAME", "DistilledImageBranch")):
        model = build(kind, 5, *ALL_SCORES, *opts).eval()
        strides = {"res4": 16} if kind == "c4" else {f"p{k}": 2**k for k in range(2, 7)}
        channels = model.backbone.output_shape()
        features = {
            name: torch.full((1, channels[name].channels, 128 // s, 128 // s), value)
            for name, s in strides.items()
        }
        proposals = Instances((126, 126))
        proposals.proposal_boxes = Boxes(torch.tensor([[10.0, 10, 20, 20]]))
        proposals.objectness_logits = torch.tensor([1.0])
        images = ImageList(torch.full((1, 3, 128, 128), value), [(126, 126)])
        with torch.no_grad():
            found, losses = model.roi_heads(images, features, [proposals])
        assert len(found[0]) == 0 and losses == {}


@pytest.mark.parametrize("kind", ["fpn", "cascade"])
def test_test_time_augmentation_knows_more_names_than_num_classes(zoo_cfg, build, kind):
    opts = (
        *ALL_SCORES, "TEST.AUG.MIN_SIZES", (64, 96), "TEST.AUG.MAX_SIZE", 160,
        "TEST.DETECTIONS_PER_IMAGE", 20,
    )  # fmt: skip
    cfg, model = zoo_cfg(kind, 5, *opts), build(kind, 5, *opts).eval()
    vocabulary = make_vocabulary(2000)
    set_vocabulary(model, vocabulary, make_embeddings(vocabulary))
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES < 2000
    (sample,) = make_batch([make_target([], [])])
    with torch.no_grad():
        found = GeneralizedRCNNWithTTA(cfg, model)([sample])[0]["instances"]
    assert len(found) == 20 and found.pred_masks.shape == (20, 96, 128)
    assert int(found.pred_classes.max()) >= cfg.MODEL.ROI_HEADS.NUM_CLASSES
    assert (found.scores.diff() <= 0).all()


@pytest.mark.parametrize("topk", [30, -1])
def test_augmented_detections_are_merged_as_detectron2_merges_them(zoo_cfg, build, topk):
    opts = ("TEST.DETECTIONS_PER_IMAGE", topk, "MODEL.ROI_HEADS.NUM_CLASSES", 5)
    tta = GeneralizedRCNNWithTTA(zoo_cfg("fpn", 5, *opts), build("fpn", 5, *opts))
    xy = torch.rand(300, 2) * 80
    boxes = torch.cat([xy, xy + 20 + torch.rand(300, 2) * 30], dim=1)
    boxes[3] = float("nan")
    scores, classes = torch.rand(300), torch.randint(0, 5, (300,))
    scores[5] = 0.0
    for rows in (slice(0, 300), slice(0, 0)):
        given = boxes[rows], list(scores[rows]), list(classes[rows]), (90, 100)
        ours, theirs = tta._merge_detections(*given), _detectron2s_merge(tta, *given)
        assert ours.image_size == theirs.image_size
        assert len(ours) == 0 or 20 < len(ours) < 298
        for name in ("scores", "pred_classes"):
            assert torch.equal(ours.get(name), theirs.get(name))
        assert torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)


def test_closed_set_models_keep_detectron2s_merge(zoo_cfg, build, monkeypatch):
    from ovd_d2.modeling import test_time_augmentation

    monkeypatch.setattr(test_time_augmentation, "_detectron2s_merge", lambda *args: "Detectron2's")
    opts = ("MODEL.ROI_HEADS.NAME", "StandardROIHeads")
    tta = GeneralizedRCNNWithTTA(zoo_cfg("fpn", 5, *opts), build("fpn", 5, *opts))
    assert tta._merge_detections(torch.zeros(0, 4), [], [], (9, 9)) == "Detectron2's"
