"""Scores of several branches: the equations, and what detectors make of them."""

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from detectron2.structures import Boxes, ImageList
from small_detectors import DIM, KINDS, make_batch, make_embeddings, make_target, make_vocabulary

from ovd_d2.errors import OVDError
from ovd_d2.language import TextEmbeddings
from ovd_d2.modeling import set_vocabulary
from ovd_d2.modeling.roi_heads.score_fusion import (
    ScoreRule,
    ensemble_probabilities,
    text_exponents,
    with_objectness,
)
from ovd_d2.modeling.roi_heads.teacher_on_crops import TeacherOnCrops

ENSEMBLE = ("MODEL.REGION_DISTILLATION.WEIGHT", 0.5,
            "MODEL.IMAGE_BRANCH.NAME", "DistilledImageBranch")  # fmt: skip
ALL = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 1000,
       "MODEL.ROI_HEADS.NMS_THRESH_TEST", 1.0)  # fmt: skip


def slow_ensemble(text, image, is_novel, base_weight, fixed_weight):
    """ViLD, section 3.4, entry by entry."""
    scores = torch.empty_like(text)
    for r in range(len(text)):
        for k in range(text.shape[1]):
            if not any(is_novel):
                weight = fixed_weight
            elif is_novel[k]:
                weight = 1 - base_weight
            else:
                weight = base_weight
            scores[r, k] = float(text[r, k]) ** weight * float(image[r, k]) ** (1 - weight)
    return scores


@pytest.mark.parametrize("novel", [(1, 4), (), (0, 1, 2, 3, 4, 5)])
def test_ensemble_is_the_equation(novel):
    is_novel = tuple(k in novel for k in range(6))
    text, image = torch.rand(2, 9, 6, dtype=torch.float64)
    text[0, 0] = image[3, 1] = text[5, 2] = image[5, 2] = 0
    exponents = text_exponents(is_novel, 2 / 3, 0.6)
    expected = slow_ensemble(text, image, is_novel, 2 / 3, 0.6)
    found = ensemble_probabilities(text, image, exponents, 1 - exponents)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert found[0, 0] == 0


def test_the_released_cube_root():
    """The TPU code's form of lambda = 2/3: cube root of p_text * p_img * (p_text or p_img)."""
    text, image = torch.rand(2, 4, 2, dtype=torch.float64)
    exponents = text_exponents((False, True), 2 / 3, 0.6)
    scores = ensemble_probabilities(text, image, exponents, 1 - exponents)
    base = (text[:, 0] ** 2 * image[:, 0]) ** (1 / 3)
    novel = (text[:, 1] * image[:, 1] ** 2) ** (1 / 3)
    torch.testing.assert_close(scores, torch.stack([base, novel], 1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_ends_of_the_weighting_are_one_branch(weight):
    text, image = torch.rand(2, 4, 3)
    text[0, 0] = image[0, 1] = 0
    exponents = torch.full((3,), weight)
    scores = ensemble_probabilities(text, image, exponents, 1 - exponents)
    torch.testing.assert_close(scores, text if weight else image)


def test_objectness_is_a_geometric_mean():
    p, objectness = torch.rand(5, 3, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    scores = with_objectness(p, objectness)
    for r in range(5):
        for k in range(3):
            assert math.isclose(scores[r, k], math.sqrt(p[r, k] * objectness[r]), rel_tol=1e-12)


@pytest.mark.parametrize("rows", [0, 3])
def test_rules_keep_the_background_column(rows):
    text, image = torch.rand(rows, 4), torch.rand(rows, 3)
    objectness, is_novel = torch.rand(rows), (False, True, False)
    for rule in (ScoreRule(combine="ensemble"), ScoreRule(combine="objectness")):
        scores = rule(text, image, objectness, is_novel)
        assert scores.shape == (rows, 4)
        assert (scores[:, -1] == 0).all()
    alone = ScoreRule(combine="objectness")(text, None, objectness, is_novel)
    torch.testing.assert_close(alone[:, :-1], with_objectness(text[:, :-1], objectness))


def best_scores(found, boxes, num_classes):
    """(R, K) scores that the detections have at the boxes, nan where none is."""
    table = torch.full((len(boxes), num_classes), math.nan)
    for box, score, k in zip(found.pred_boxes.tensor, found.scores, found.pred_classes):
        table[(boxes - box).abs().sum(dim=1).argmin(), k] = score
    return table


def run(model, batch):
    """Detections of one image and what the heads got: features, RPN's proposals."""
    seen = []
    hook = model.roi_heads.register_forward_pre_hook(lambda m, args: seen.append(args))
    with torch.no_grad():
        found = model.eval()(batch)[0]["instances"]
    hook.remove()
    return found, seen[0][1], seen[0][2][0]


@pytest.mark.parametrize("novel", [(1, 4), ()])
def test_a_detectors_scores_are_those_of_its_two_branches(build, novel):
    model = build("fpn", 5, *ENSEMBLE, *ALL, "MODEL.RPN.POST_NMS_TOPK_TEST", 6)
    vocabulary = make_vocabulary(5, novel)
    set_vocabulary(model, vocabulary, make_embeddings(vocabulary))
    found, features, proposals = run(model, make_batch([make_target([], [])]))
    heads = model.roi_heads
    with torch.no_grad():
        pooled = heads.pool(features, [proposals.proposal_boxes])
        predictions = heads.box_predictor(heads.box_head(pooled))
        text = predictions[0].softmax(dim=1)[:, :-1]
        branch = heads.image_branch
        e = F.normalize(branch.cls_score.projection(branch.head(pooled)), dim=1)
        image = (100 * e @ make_embeddings(vocabulary).embeddings.T).softmax(dim=1)
        boxes = Boxes(heads.box_predictor.predict_boxes(predictions, [proposals])[0])
    boxes.clip(found.image_size)
    expected = slow_ensemble(text, image, vocabulary.is_novel, 2 / 3, 0.6)
    table = best_scores(found, boxes.tensor, 5)
    seen = ~table.isnan()
    assert seen.sum() > 10
    torch.testing.assert_close(table[seen], expected[seen], rtol=1e-4, atol=1e-7)


def test_vild_image_scores_names_times_objectness(build):
    model = build(
        "fpn", 5, *ALL, "MODEL.REGION_DISTILLATION.WEIGHT", 0.5,
        "MODEL.OPEN_VOCAB.TRAIN_CLASSIFIER", False, "MODEL.RPN.POST_NMS_TOPK_TEST", 6,
    )  # fmt: skip
    found, features, proposals = run(model, make_batch([make_target([], [])]))
    heads = model.roi_heads
    with torch.no_grad():
        x = heads.box_head(heads.pool(features, [proposals.proposal_boxes]))
        logits, deltas = heads.box_predictor(x)
        boxes = Boxes(heads.box_predictor.predict_boxes((logits, deltas), [proposals])[0])
    boxes.clip(found.image_size)
    expected = (
        logits[:, :5].softmax(dim=1) * proposals.objectness_logits.sigmoid()[:, None]
    ).sqrt()
    table = best_scores(found, boxes.tensor, 5)
    seen = ~table.isnan()
    assert seen.sum() > 10
    torch.testing.assert_close(table[seen], expected[seen], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["DistilledImageBranch", "LabelledImageBranch"])
def test_a_second_heads_opinion_is_over_the_names_alone(build, name):
    """Its background, learned or not, has no share in the softmax."""
    model = build(
        "fpn", 5, "MODEL.IMAGE_BRANCH.NAME", name, "MODEL.REGION_DISTILLATION.WEIGHT", 1.0
    )
    branch = model.roi_heads.image_branch.eval()
    pooled, boxes = torch.randn(6, 16, 7, 7), [torch.zeros(4, 4), torch.zeros(2, 4)]
    with torch.no_grad():
        first, second = branch.probabilities(pooled, boxes, None)
        names = branch.cls_score(branch.features(pooled))[:, :-1]
    assert first.shape == (4, 5)
    found = torch.cat([first, second])
    torch.testing.assert_close(found.sum(dim=1), torch.ones(6))
    torch.testing.assert_close(found, names.softmax(dim=1))


@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary_swap_reaches_the_image_branch(build, kind):
    model = build(kind, 5, *ENSEMBLE, *ALL)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    batch = make_batch([make_target([], [])])
    first_vocabulary = make_vocabulary(5, novel=(0,))
    set_vocabulary(model, first_vocabulary, make_embeddings(first_vocabulary))
    first, _, _ = run(model, batch)
    for vocabulary in (make_vocabulary(1), make_vocabulary(9), make_vocabulary(3, novel=(2,))):
        set_vocabulary(model, vocabulary, make_embeddings(vocabulary, seed=4))
        found, _, _ = run(model, batch)
        assert len(found) and int(found.pred_classes.max()) < len(vocabulary)
        assert len(model.roi_heads.image_branch.cls_score.class_embeddings) == len(vocabulary)
    set_vocabulary(model, first_vocabulary, make_embeddings(first_vocabulary))
    again, _, _ = run(model, batch)
    assert torch.equal(first.scores, again.scores)
    # the image branch's say: other embeddings for it alone change the scores
    heads = model.roi_heads
    heads.image_branch.set_vocabulary(first_vocabulary, make_embeddings(first_vocabulary, seed=7))
    other, _, _ = run(model, batch)
    assert not torch.equal(first.scores, other.scores)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()
               if not k.endswith("encoder_id_bytes"))  # fmt: skip


class ColourEncoder:
    """A teacher that knows the mean colour of a box; remembers what it was asked."""

    def __init__(self):
        self.images, self.boxes = [], []

    def encode(self, images, boxes):
        self.images += images
        self.boxes += boxes
        generator = torch.Generator().manual_seed(5)
        mix = torch.randn(3, DIM, generator=generator)
        out = []
        for image, of_image in zip(images, boxes):
            rows = [image.float().mean(dim=(1, 2)) + box.sum() / 100 for box in of_image]
            rows = torch.stack(rows) if rows else torch.zeros(0, 3)
            out.append(F.normalize(rows @ mix, dim=1))
        return out


CROPS = ("MODEL.IMAGE_BRANCH.NAME", "TeacherOnCrops")


@pytest.fixture
def with_crops(build):
    """``with_crops(kind, *opts)``: model and its fake teacher."""

    def make(kind, *opts, encoder_id="test-encoder"):
        model = build(kind, 5, *CROPS, *opts)
        encoder = ColourEncoder()
        model.roi_heads.image_branch._load_encoder = lambda device: (encoder, encoder_id)
        vocabulary = make_vocabulary(5, novel=(1,))
        set_vocabulary(model, vocabulary, make_embeddings(vocabulary))
        return model, encoder

    return make


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scores", ["ensemble", "objectness"])
@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_the_teacher_sees_the_input_as_it_was(with_crops, kind, scores, image_format):
    model, encoder = with_crops(
        kind, *ALL, "MODEL.IMAGE_BRANCH.SCORES", scores, "INPUT.FORMAT", image_format,
        "MODEL.PIXEL_STD", [57.375, 57.12, 58.395],
    )  # fmt: skip
    batch = make_batch([make_target([], []), make_target([], [], (64, 100))])
    with torch.no_grad():
        model.eval()(batch)
    for sample, image in zip(batch, encoder.images):
        expected = sample["image"].flip(0) if image_format == "BGR" else sample["image"]
        assert image.dtype == torch.uint8
        assert torch.equal(image, expected)
    for sample, boxes in zip(batch, encoder.boxes):
        height, width = sample["image"].shape[1:]
        assert (boxes >= 0).all() and (boxes <= boxes.new_tensor([width, height] * 2)).all()


def test_clip_on_crops_scores(with_crops):
    model, encoder = with_crops(
        "fpn", *ALL, "MODEL.IMAGE_BRANCH.SCORES", "objectness", "MODEL.IMAGE_BRANCH.NMS_THRESH",
        1.0, "MODEL.RPN.POST_NMS_TOPK_TEST", 6,
    )  # fmt: skip
    found, _, proposals = run(model, make_batch([make_target([], [])]))
    boxes = encoder.boxes[0]
    (e,) = ColourEncoder().encode(encoder.images, encoder.boxes)
    p = (100 * e @ make_embeddings(make_vocabulary(5)).embeddings.T).softmax(dim=1)
    expected = (p * proposals.objectness_logits.sigmoid()[:, None]).sqrt()
    table = best_scores(found, boxes, 5)
    seen = ~table.isnan()
    assert seen.sum() > 10
    torch.testing.assert_close(table[seen], expected[seen], rtol=1e-4, atol=1e-7)


def test_near_duplicates_are_not_cropped(with_crops):
    model, encoder = with_crops("fpn", "MODEL.IMAGE_BRANCH.NMS_THRESH", 0.3)
    run(model, make_batch([make_target([], [])]))
    few = len(encoder.boxes[0])
    overlaps = torch.ops.torchvision.nms(encoder.boxes[0], torch.ones(few), 0.3)
    assert 0 < len(overlaps) == few
    every, all_boxes = with_crops("fpn", "MODEL.IMAGE_BRANCH.NMS_THRESH", 1.0)
    run(every, make_batch([make_target([], [])]))
    assert len(all_boxes.boxes[0]) == 20 > few


def test_it_has_no_weights_and_loads_a_text_models(build):
    text, crops = build("fpn", 5), build("fpn", 5, *CROPS)
    assert text.state_dict().keys() == crops.state_dict().keys()
    crops.load_state_dict(text.state_dict())


def test_a_teacher_of_another_space_is_refused(with_crops):
    model, _ = with_crops("fpn", encoder_id="clip@2")
    with pytest.raises(OVDError, match=r"clip@2.*test-encoder"):
        run(model, make_batch([make_target([], [])]))
    good, _ = with_crops("fpn")
    run(good, make_batch([make_target([], [])]))
    vocabulary, before = make_vocabulary(2), good.roi_heads.vocabulary
    good.roi_heads.box_predictor.cls_score.encoder_id_bytes.zero_()  # as of a file of vectors
    with pytest.raises(OVDError, match=r"test-encoder.*other@3"):
        set_vocabulary(good, vocabulary, make_embeddings(vocabulary, encoder_id="other@3"))
    assert good.roi_heads.vocabulary == before


def test_trains_like_vild_text_and_needs_no_teacher(build):
    from small_detectors import training_losses

    batch = make_batch([make_target([[10, 10, 50, 60]], [1])])
    text, crops = build("fpn", 5), build("fpn", 5, *CROPS)
    crops.load_state_dict(text.state_dict())
    left, right = training_losses(text, batch), training_losses(crops, batch)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[k], right[k]) for k in left)


def test_boxes_that_are_not_finite_do_not_reach_the_teacher():
    encoder = ColourEncoder()
    branch = TeacherOnCrops(
        lambda device: (encoder, "a@1"), pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3,
        input_format="RGB",
    )  # fmt: skip
    names = make_vocabulary(2)
    branch.set_vocabulary(names, TextEmbeddings(torch.eye(2, DIM), names.names, "a@1"))
    images = ImageList(torch.zeros(1, 3, 8, 8), [(8, 8)])
    boxes = torch.tensor([[0.0, 0, 4, 4], [math.nan, 0, 4, 4], [-5, -5, math.inf, 40]])
    assert branch.candidates(boxes, torch.ones(3)) is None
    (p,) = branch.probabilities(torch.zeros(0), [boxes], images)
    assert p.shape == (3, 2)
    assert torch.isfinite(encoder.boxes[0]).all()
    (none,) = branch.probabilities(torch.zeros(0), [boxes[:0]], images)
    assert none.shape == (0, 2)


def test_another_image_format_is_refused():
    with pytest.raises(OVDError, match="INPUT.FORMAT"):
        TeacherOnCrops(lambda d: None, pixel_mean=[0.0], pixel_std=[1.0], input_format="L")


@pytest.mark.parametrize("kind", ["fpn", "cascade", "c4"])
def test_scores_times_those_of_the_proposals(build, kind):
    """MODEL.OPEN_VOCAB.MULT_PROPOSAL_SCORE of any head: sqrt(probability x objectness)."""
    found = []
    for multiply in (False, True):
        model = build(kind, 5, "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True,
                      "MODEL.OPEN_VOCAB.MULT_PROPOSAL_SCORE", multiply).eval()  # fmt: skip
        batch = make_batch([make_target([[10, 10, 60, 60]], [0])])
        with torch.no_grad():
            images = model.preprocess_image(batch)
            features = model.backbone(images.tensor)
            proposals, _ = model.proposal_generator(images, features)
            found.append(model.roi_heads.boxes_and_scores(images, features, proposals)[1][0])
    objectness = proposals[0].objectness_logits.sigmoid()
    expected = (found[0][:, :-1] * objectness[:, None]).sqrt()
    torch.testing.assert_close(found[1][:, :-1], expected)


def test_scores_of_two_branches_are_not_multiplied_again(zoo_cfg):
    with pytest.raises(OVDError, match="MULT_PROPOSAL_SCORE True are for a single head"):
        build_model(zoo_cfg("fpn", 5, "MODEL.IMAGE_BRANCH.NAME", "DistilledImageBranch",
                            "MODEL.OPEN_VOCAB.MULT_PROPOSAL_SCORE", True))  # fmt: skip


def test_novel_classes_by_objectness():
    """ViLD's weights, objectness in the place of the text branch for novel classes alone."""
    torch.manual_seed(0)
    text, image = torch.rand(5, 4).softmax(1), torch.rand(5, 3).softmax(1)
    objectness, novel = torch.rand(5), [False, True, False]
    rule = ScoreRule(combine="ensemble", novel_partner="objectness")
    found = rule(text, image, objectness, novel)
    plain = ScoreRule(combine="ensemble")(text, image, objectness, novel)
    assert torch.equal(found[:, [0, 2, 3]], plain[:, [0, 2, 3]])
    expected = objectness ** (1 / 3) * image[:, 1] ** (2 / 3)
    torch.testing.assert_close(found[:, 1], expected)
    unknown = [False] * 3
    plain = ScoreRule(combine="ensemble")(text, image, objectness, unknown)
    assert torch.equal(rule(text, image, objectness, unknown), plain)


@pytest.mark.parametrize("partner", ["text", "objectness"])
def test_a_power_of_novel_scores(partner):
    """Novel columns are raised to it; base ones, and vocabularies that mark none as novel, stay."""
    text, image = torch.rand(5, 4, dtype=torch.float64).softmax(1), torch.rand(5, 3).double()
    objectness, novel = torch.rand(5, dtype=torch.float64), [False, True, False]
    rule = ScoreRule(combine="ensemble", novel_partner=partner, novel_power=3.5)
    plain = ScoreRule(combine="ensemble", novel_partner=partner)
    expected = plain(text, image, objectness, novel)
    expected[:, 1] **= 3.5
    torch.testing.assert_close(rule(text, image, objectness, novel), expected)
    unknown = [False] * 3
    torch.testing.assert_close(
        rule(text, image, objectness, unknown), plain(text, image, objectness, unknown)
    )


@pytest.mark.parametrize(
    "combine, partner, expected",
    [
        ("objectness", "text", [0.5, 0.5, 0.5]),
        ("ensemble", "text", [1.0, 3.5, 1.0]),
        ("ensemble", "objectness", [1.0, 3.5 * 2 / 3, 1.0]),
    ],
)
def test_what_shares_are_raised_to(combine, partner, expected):
    """Half the shares, the score times a half to that."""
    text, image = torch.rand(5, 4, dtype=torch.float64).softmax(1), torch.rand(5, 3).double()
    objectness, novel = torch.rand(5, dtype=torch.float64), [False, True, False]
    rule = ScoreRule(combine=combine, novel_partner=partner, novel_power=3.5)
    exponents = rule.share_exponents(novel)
    torch.testing.assert_close(exponents, torch.tensor(expected))
    whole = rule(text, image, objectness, novel)[:, :-1]
    halves = rule(text / 2, image / 2, objectness, novel)[:, :-1]
    torch.testing.assert_close(halves, whole * 0.5 ** exponents.double())


@pytest.mark.parametrize("power", [0.0, -1.0, float("nan")])
def test_a_power_that_is_none_is_named(power):
    with pytest.raises(OVDError, match="NOVEL_POWER is .*; it must be above 0"):
        ScoreRule(combine="ensemble", novel_power=power)


def test_an_unknown_partner_is_named():
    with pytest.raises(OVDError, match="NOVEL_PARTNER is .image.; use"):
        ScoreRule(combine="ensemble", novel_partner="image")
