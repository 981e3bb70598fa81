"""Detic's box head against the numbers of its public code: logits, boxes, losses, scores."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform

from ovd_d2.language import TextEmbeddings, Vocabulary
from ovd_d2.losses import pseudo_box_loss
from ovd_d2.modeling.classifiers import EmbeddingClassifier
from ovd_d2.modeling.roi_heads import OpenVocabBoxPredictor, ScoreRule
from ovd_d2.modeling.roi_heads.top_pairs_inference import top_pairs_inference

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "detic" / "head.npz")
IMAGES = (7, 5)  # proposals of each
BIAS = -4.6


def tensor(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[name])


def close(ours, name: str, rtol: float = 1e-5):
    """Relative to the largest entry."""
    expected = GOLDEN[name]
    atol = rtol * float(np.abs(expected).max())
    np.testing.assert_allclose(np.asarray(ours.detach()), expected, rtol=rtol, atol=atol)


def predictor(bias: float | None = None, counts=(), **options) -> OpenVocabBoxPredictor:
    names = tuple(f"thing {k}" for k in range(10))
    made = OpenVocabBoxPredictor(
        ShapeSpec(channels=48),
        classifier=EmbeddingClassifier(48, 32, logit_scale=50.0, background="zero", bias_init=bias),
        box_mlp=True,
        use_sigmoid_ce=True,
        box2box_transform=Box2BoxTransform(weights=(10, 10, 5, 5)),
        **options,
    )
    state = {
        name.removeprefix("param.").replace("cls_score.linear", "cls_score.projection"): tensor(
            name
        )
        for name in GOLDEN.files
        if name.startswith("param.") and "zs_weight" not in name
    }
    missing, unexpected = made.load_state_dict(state, strict=False)
    assert unexpected == [] and set(missing) <= {"cls_score.encoder_id_bytes", "cls_score.bias"}
    vocabulary = Vocabulary(names, image_counts=tuple(counts))
    made.set_vocabulary(vocabulary, TextEmbeddings(tensor("text_embeddings"), names, ""))
    return made


def test_logits_and_boxes():
    logits, deltas = predictor()(tensor("x"))
    close(logits, "logits")
    close(deltas, "deltas")


def test_a_model_with_bias_does_not_keep_its_own():
    """The published heads have none: it is 0, whatever MODEL.OPEN_VOCAB.BIAS_INIT says."""
    head = predictor(bias=BIAS)
    close(head(tensor("x"))[0], "logits")
    with torch.no_grad():
        head.cls_score.bias.fill_(BIAS)
    close(head(tensor("x"))[0], "logits_with_bias")


def test_another_vocabulary():
    head = predictor()
    names = ("a", "b", "c", "d")
    head.set_vocabulary(Vocabulary(names), TextEmbeddings(tensor("alt_embeddings"), names, ""))
    close(head(tensor("x"))[0][:, :-1], "logits_alt")


@pytest.mark.parametrize(
    ("name", "has_counts", "federated"),
    [("plain", False, False), ("ignore_zero", True, False), ("federated_ignore_zero", True, True)],
)
def test_losses_of_boxes(name, has_counts, federated):
    counts = GOLDEN["box.image_count"].tolist() if has_counts else ()
    logits = tensor("box.logits").requires_grad_()
    head = predictor(counts=counts, use_fed_loss=federated, fed_loss_num_classes=4)
    loss = head.classification_loss(logits, tensor("box.gt_classes"))
    loss.backward()
    close(loss, f"box.{name}.loss")
    close(logits.grad, f"box.{name}.grad")


def chosen_proposal(mode: str, image: int, label: int) -> int:
    """Which proposal of the image stands for a label: the last one is the whole image."""
    if mode == "first":
        return 0
    if mode == "image":
        return IMAGES[image] - 1
    if mode == "max_size":
        boxes = GOLDEN[f"img{image}.boxes"][:-1]
        return int((boxes[:, 2:] - boxes[:, :2]).prod(axis=1).argmax())
    start = sum(IMAGES[:image])
    return int(GOLDEN["image.logits"][start : start + IMAGES[image], label].argmax())


@pytest.mark.parametrize("mode", ["first", "image", "max_size", "max_score"])
def test_losses_of_image_labels(mode):
    """Where the box comes from is Detic's four ways; what it teaches is our one loss."""
    logits = tensor("image.logits").requires_grad_()
    rows, labels, images = [], [], []
    for image in range(2):
        for label in GOLDEN[f"img{image}.labels"].tolist():
            rows.append(sum(IMAGES[:image]) + chosen_proposal(mode, image, label))
            labels.append(label)
            images.append(image)
    loss = 0.1 * pseudo_box_loss(logits[rows], torch.tensor(labels), torch.tensor(images), 2)
    loss.backward()
    close(loss, f"image.{mode}.loss")
    close(logits.grad, f"image.{mode}.grad_logits")


def test_scores_with_the_proposals_and_detections():
    """MODEL.OPEN_VOCAB.MULT_PROPOSAL_SCORE: sqrt(probability x proposal score)."""
    rule = ScoreRule(combine="objectness")
    proposal_scores = torch.cat([tensor(f"img{i}.proposal_scores") for i in range(2)])
    scores = rule(tensor("test.probabilities"), None, proposal_scores, (False,) * 10)
    np.testing.assert_allclose(scores[:, :-1], GOLDEN["test.scores"][:, :-1], rtol=1e-5)
    boxes = [tensor(f"img{i}.boxes") for i in range(2)]
    sizes = [tuple(GOLDEN[f"img{i}.size_hw"].tolist()) for i in range(2)]
    found, _ = top_pairs_inference(boxes, scores.split(IMAGES), sizes, 0.0, 0.5, 300)
    for i, one in enumerate(found):
        close(one.scores, f"test.img{i}.scores")
        assert one.pred_classes.tolist() == GOLDEN[f"test.img{i}.classes"].tolist()
        close(one.pred_boxes.tensor, f"test.img{i}.boxes")
