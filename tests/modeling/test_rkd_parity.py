"""One training step of the whole box head against the public code's numbers, with and without
weight transfer: losses, gradients and what lies between."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

from ovd_d2.checkpoint.object_centric_ovd import rename_classifier
from ovd_d2.language import TextEmbeddings, Vocabulary
from ovd_d2.modeling.classifiers import EmbeddingClassifier, build_projection
from ovd_d2.modeling.roi_heads import OpenVocabBoxPredictor, OpenVocabROIHeads, RegionDistiller
from ovd_d2.structures import Supervision

FOLDER = Path(__file__).parents[1] / "golden" / "rkd"
STEP = np.load(FOLDER / "roi_head_step.npz")
TRANSFER = np.load(FOLDER / "roi_head_step_weight_transfer.npz")
GOLDEN = {"linear": STEP, "weight_transfer": TRANSFER}
LOSSES = {
    "loss_cls": "cls_loss",
    "loss_box_reg": "box_reg_loss",
    "loss_distill_l1": "distil_l1_loss",
    "loss_distill_relation": "irm_loss",
}
NOT_OURS = ("box_predictor.freq_weight", "box_predictor.cls_score.zs_weight")


def tensor(name: str) -> torch.Tensor:
    return torch.from_numpy(STEP[name])


def close(ours, expected, rtol=1e-4):
    """Relative to the largest entry."""
    atol = rtol * float(np.abs(expected).max())
    np.testing.assert_allclose(np.asarray(ours), expected, rtol=rtol, atol=atol)


def parameters(kind: str) -> dict[str, torch.Tensor]:
    """The stored parameters under our names, by the converter."""
    stored = {
        "roi_heads." + key.removeprefix("param."): torch.from_numpy(data[key])
        for data in {"linear": (STEP,), "weight_transfer": (STEP, TRANSFER)}[kind]
        for key in data.files
        if key.startswith("param.") and not key.endswith(NOT_OURS)
    }
    renamed = rename_classifier(stored, kind == "weight_transfer")
    return {key.removeprefix("roi_heads."): value for key, value in renamed.items()}


def build_heads(kind: str, distil: bool = True) -> OpenVocabROIHeads:
    classes = tensor("zs_text_embeddings")
    vocabulary = Vocabulary(
        names=tuple(f"thing {k}" for k in range(len(classes))),
        image_counts=tuple(STEP["image_count"].tolist()),
    )
    classifier = EmbeddingClassifier(
        64, 32, logit_scale=float(STEP["norm_temp"]), background="zero", bias_init=-4.6,
        projection=build_projection(kind, 64, 32),
    )  # fmt: skip
    predictor = OpenVocabBoxPredictor(
        ShapeSpec(channels=64),
        classifier=classifier,
        box_mlp=True,
        use_sigmoid_ce=True,
        box2box_transform=Box2BoxTransform(weights=tuple(STEP["bbox_reg_weights"].tolist())),
        smooth_l1_beta=float(STEP["smooth_l1_beta"]),
    )
    temperature = float(STEP["rkd_temperature"])
    distiller = RegionDistiller(
        weight=float(STEP["w_l1"]) * temperature,
        loss="l1_mean",
        relation_weight=float(STEP["w_irm"]) * temperature,
    )
    side = int(STEP["pooler_resolution"])
    heads = OpenVocabROIHeads(
        vocabulary=vocabulary,
        class_embedder=TextEmbeddings(classes, vocabulary.names, ""),
        region_tasks=[distiller] if distil else [],
        box_in_features=["p3", "p4"],
        box_pooler=ROIPooler(side, (1 / 8, 1 / 16), 0, "ROIAlignV2"),
        box_head=FastRCNNConvFCHead(
            ShapeSpec(channels=32, height=side, width=side), conv_dims=[], fc_dims=[64, 64]
        ),
        box_predictor=predictor,
        num_classes=len(classes),
        batch_size_per_image=24,
        positive_fraction=0.25,
        proposal_matcher=Matcher([0.5], [0, 1]),
    )
    heads.load_state_dict(parameters(kind))
    return heads.train()


class Step:
    """One training step; the proposals are labelled already."""

    def __init__(self, heads: OpenVocabROIHeads) -> None:
        size = tuple(STEP["image_size_hw"].tolist())
        self.features = {n: tensor(f"feat_{n}").requires_grad_() for n in ("p3", "p4")}
        proposals = Instances(size)
        proposals.proposal_boxes = Boxes(tensor("proposal_boxes"))
        proposals.gt_classes = tensor("gt_classes")
        proposals.gt_boxes = Boxes(tensor("gt_boxes_per_proposal"))
        heads.label_and_sample_proposals = lambda proposals, targets: proposals
        targets = Instances(size)
        targets.gt_boxes = Boxes(tensor("distill_boxes"))
        count = len(targets)
        targets.gt_classes = torch.full((count,), -1)
        targets.supervision = torch.full((count,), int(Supervision.TEACHER_REGION))
        targets.teacher_embedding = tensor("distill_clip_embeds")
        self.seen = {}
        hooks = [
            part.register_forward_hook(lambda m, a, out, name=name: self.seen.update({name: out}))
            for name, part in heads.named_children()
        ]
        images = ImageList(torch.zeros(1, 3, *size), [size])
        with EventStorage():
            _, self.losses = heads(images, self.features, [proposals], [targets])
        for hook in hooks:
            hook.remove()


@pytest.fixture(scope="module", params=GOLDEN)
def done(request):
    """(kind, its golden values, heads, step), gradients computed."""
    heads = build_heads(request.param)
    step = Step(heads)
    sum(step.losses.values()).backward()
    return request.param, GOLDEN[request.param], heads, step


def test_losses(done):
    _, golden, _, step = done
    assert step.losses.keys() == LOSSES.keys()
    for ours, theirs in LOSSES.items():
        close(step.losses[ours].item(), golden[f"loss.{theirs}"])
    close(sum(step.losses.values()).item(), golden["loss_total"])


def test_gradients(done):
    """The norm of every parameter's, those of both feature maps, and full ones where stored."""
    kind, golden, heads, step = done
    gradients = {f"feat_{name}": value.grad for name, value in step.features.items()}
    theirs = {
        key: torch.zeros(0)
        for prefix in ("gradnorm.", "nograd.")
        for key in (k.removeprefix(prefix) for k in golden.files if k.startswith(prefix))
    }
    ours = {name: p.grad for name, p in heads.named_parameters()}
    for key in theirs:
        if key.startswith("feat_"):
            continue
        (name,) = rename_classifier({f"roi_heads.{key}": 0}, kind == "weight_transfer")
        gradients[key] = ours.pop(name.removeprefix("roi_heads."))
    assert ours == {}  # no parameter of ours was left out
    for key, gradient in gradients.items():
        if f"nograd.{key}" in golden.files:
            assert gradient is None, key
        else:
            close(gradient.norm(), golden[f"gradnorm.{key}"])
        if f"grad.{key}" in golden.files:
            close(gradient, golden[f"grad.{key}"])


def test_what_lies_between(done):
    kind, golden, heads, step = done
    x, regions = step.seen["box_head"].detach().split([24, 5])
    logits, deltas = (value.detach() for value in step.seen["box_predictor"])
    close(x, STEP["mid.box_head_out"])
    close(regions, STEP["mid.distill_box_head_out"])
    close(logits, golden["mid.logits"])
    close(deltas, STEP["mid.deltas"])
    projection = heads.box_predictor.cls_score.projection
    project = projection.distilled if kind == "weight_transfer" else projection
    close(project(regions).detach(), STEP["mid.distill_linear_out"])


def test_boxes_go_to_the_same_levels():
    for boxes, levels in (("proposal_boxes", "proposal"), ("distill_boxes", "distill")):
        found = assign_boxes_to_levels([Boxes(tensor(boxes))], 3, 4, 224, 4)
        assert found.tolist() == STEP[f"mid.{levels}_level"].tolist()


def test_without_distillation():
    losses = Step(build_heads("linear", distil=False)).losses
    assert losses.keys() == {"loss_cls", "loss_box_reg"}
    close(losses["loss_cls"].item(), STEP["loss_nodistill.cls_loss"])
    close(losses["loss_box_reg"].item(), STEP["loss_nodistill.box_reg_loss"])
