"""Detectors that score in blocks find what they find by tables of all scores."""

import ctypes
import sys

import pytest
import torch
from detectron2.structures import Boxes, Instances
from small_detectors import KINDS, make_batch, make_embeddings, make_target, make_vocabulary
from test_score_fusion import ColourEncoder

from ovd_d2.benchmarks.speed.detection_postprocessing import peak_memory
from ovd_d2.errors import OVDError
from ovd_d2.modeling import set_vocabulary
from ovd_d2.modeling.roi_heads import blocked_scores, blocked_scoring
from ovd_d2.modeling.roi_heads.image_branch import ImageBranch

SETTINGS = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1e-4, "TEST.DETECTIONS_PER_IMAGE", 200,
            "MODEL.OPEN_VOCAB.LOGIT_SCALE", 20.0)  # fmt: skip
WAYS = {
    "softmax": (),
    "sigmoid": ("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True, "MODEL.OPEN_VOCAB.BACKGROUND", "zero",
                "MODEL.OPEN_VOCAB.USE_BIAS", True),
    "objectness": ("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True,
                   "MODEL.OPEN_VOCAB.MULT_PROPOSAL_SCORE", True),
    "names alone": ("MODEL.REGION_DISTILLATION.WEIGHT", 0.5,
                    "MODEL.OPEN_VOCAB.TRAIN_CLASSIFIER", False),
    "ensemble": ("MODEL.REGION_DISTILLATION.WEIGHT", 0.5,
                 "MODEL.IMAGE_BRANCH.NAME", "DistilledImageBranch"),
    "novel by objectness": ("MODEL.REGION_DISTILLATION.WEIGHT", 0.5,
                            "MODEL.IMAGE_BRANCH.NAME", "DistilledImageBranch",
                            "MODEL.IMAGE_BRANCH.NOVEL_PARTNER", "objectness",
                            "MODEL.IMAGE_BRANCH.NOVEL_POWER", 3.5),
    "labelled": ("MODEL.IMAGE_BRANCH.NAME", "LabelledImageBranch"),
    "crops": ("MODEL.IMAGE_BRANCH.NAME", "TeacherOnCrops"),
    "crops and objectness": ("MODEL.IMAGE_BRANCH.NAME", "TeacherOnCrops",
                             "MODEL.IMAGE_BRANCH.SCORES", "objectness"),
}  # fmt: skip


@pytest.fixture
def detector(build):
    """``detector(kind, way)``: with 300 classes, some novel."""

    def make(kind, *opts):
        model = build(kind, 5, *SETTINGS, *opts).eval()
        heads = model.roi_heads
        if getattr(heads.image_branch, "_load_encoder", None):
            encoder = ColourEncoder()
            heads.image_branch._load_encoder = lambda device: (encoder, "test-encoder")
        vocabulary = make_vocabulary(300, novel=range(200, 300))
        set_vocabulary(model, vocabulary, make_embeddings(vocabulary))
        for predictor in heads.box_predictors:  # untrained it sees the same everywhere
            torch.nn.init.normal_(predictor.cls_score.projection.weight, std=1)
        return model

    return make


def both_ways(model, batch, monkeypatch):
    """Detections by tables, and in blocks."""
    dense = model(batch)
    monkeypatch.setattr(blocked_scoring, "MOST_DENSE_CLASSES", 299)
    monkeypatch.setitem(blocked_scores._BLOCK_BYTES, "cpu", 4 * 20 * 128)
    tables = []
    monkeypatch.setattr(type(model.roi_heads), "boxes_and_scores", lambda *args: tables.append(1))
    blocked = model(batch)
    assert not tables
    return ([output["instances"] for output in way] for way in (dense, blocked))


def rows_of(found: Instances):
    """(R, 6) box, class and score, ordered by class and box: the teacher of crops scores some boxes
    alike but for rounding."""
    numbers = [found.pred_classes[:, None].float(), found.pred_boxes.tensor, found.scores[:, None]]
    return torch.tensor(sorted(torch.cat(numbers, dim=1).tolist())).reshape(-1, 6)


def assert_alike(one: Instances, two: Instances):
    assert len(one) == len(two) > 50
    torch.testing.assert_close(one.scores, two.scores, rtol=3e-6, atol=0)
    first, second = rows_of(one), rows_of(two)
    assert torch.equal(first[:, :5], second[:, :5])
    torch.testing.assert_close(first[:, 5], second[:, 5], rtol=3e-6, atol=0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_is_found(detector, monkeypatch, kind, way):
    model = detector(kind, *WAYS[way])
    batch = make_batch([make_target([], [])] * 2)
    with torch.no_grad():
        for one, two in zip(*both_ways(model, batch, monkeypatch)):
            assert_alike(one, two)


@pytest.mark.parametrize("way", ["softmax", "ensemble", "crops"])
def test_under_autocast(detector, monkeypatch, way):
    model = detector("fpn", *WAYS[way])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (one,), (two,) = both_ways(model, make_batch([make_target([], [])]), monkeypatch)
    assert_alike(one, two)


def test_with_gradients_on(detector, monkeypatch):
    model = detector("cascade", *WAYS["sigmoid"])
    (one,), (two,) = both_ways(model, make_batch([make_target([], [])]), monkeypatch)
    assert_alike(one, two)
    assert one.scores.requires_grad and not two.scores.requires_grad


def test_an_image_without_proposals(detector, monkeypatch):
    model = detector("fpn", *WAYS["ensemble"])
    batch = make_batch([make_target([], [])] * 2)
    monkeypatch.setattr(blocked_scoring, "MOST_DENSE_CLASSES", 299)
    with torch.no_grad():
        images = model.preprocess_image(batch)
        features = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, features)
        alone, _ = model.roi_heads(images, features, proposals)
        found, _ = model.roi_heads(images, features, [proposals[0][:0], proposals[1]])
    assert len(found[0]) == 0
    assert torch.equal(found[1].pred_classes, alone[1].pred_classes)


@pytest.fixture
def mapped_tensors():
    """Every big tensor is a mapping of its own. glibc's malloc learns from what other tests free to
    keep them on its heap instead, where the holes between them count as memory."""
    if sys.platform != "linux":
        pytest.skip("the kernel's high-water mark")
    mallopt, most_mapped = ctypes.CDLL(None).mallopt, -3  # M_MMAP_THRESHOLD
    assert mallopt(most_mapped, 1024 * 1024)
    yield
    mallopt(most_mapped, 32 * 1024 * 1024)  # the most it would have learnt


@pytest.mark.usefixtures("mapped_tensors")
@pytest.mark.parametrize("way", ["softmax", "ensemble"])
def test_memory_does_not_grow_with_proposals_times_classes(build, monkeypatch, way):
    """1000 proposals x 100,000 names: a table of scores is 400 MB."""
    model = build("fpn", 5, *SETTINGS, *WAYS[way]).eval()
    vocabulary = make_vocabulary(100_000)
    set_vocabulary(model, vocabulary, make_embeddings(vocabulary))
    corners = torch.rand(1000, 2, generator=torch.Generator().manual_seed(0)) * 60
    boxes = Boxes(torch.cat([corners, corners + 30], dim=1))
    proposals = [Instances((96, 128), proposal_boxes=boxes, objectness_logits=torch.zeros(1000))]
    with torch.no_grad():
        images = model.preprocess_image(make_batch([make_target([], [])]))
        features = model.backbone(images.tensor)
        model.roi_heads(images, features, [proposals[0][:9]])  # what happens once only
        found = []

        def run():
            found[:] = model.roi_heads(images, features, proposals)[0]

        assert peak_memory(run, torch.device("cpu")) < 300e6
        assert len(found[0]) == 200
        if way == "softmax":  # the measure sees a table
            monkeypatch.setattr(blocked_scoring, "MOST_DENSE_CLASSES", 100_000)
            assert peak_memory(run, torch.device("cpu")) > 700e6


@pytest.mark.parametrize("kind", ["fpn", "cascade"])
def test_stages_and_branches_share_the_classes(detector, kind):
    """A million of 512 numbers take 2 GB; an image branch that embeds them otherwise keeps its."""
    heads = detector(kind, *WAYS["ensemble"]).roi_heads
    parts = [*heads.box_predictors, heads.image_branch]
    assert len({part.cls_score.class_embeddings.data_ptr() for part in parts}) == 1
    branch = heads.image_branch
    branch.set_vocabulary = lambda vocabulary, embeddings: branch.cls_score.set_class_embeddings(
        embeddings.embeddings.flip(1)
    )
    heads.set_vocabulary(heads.vocabulary)
    flipped, text = branch.cls_score.class_embeddings, heads.box_predictors[0].cls_score
    torch.testing.assert_close(flipped, text.class_embeddings.flip(1))


def test_a_branch_that_knows_tables_only_says_so():
    with pytest.raises(OVDError, match="ImageBranch cannot score classes in blocks"):
        ImageBranch().opinions(torch.zeros(0), [], None)
