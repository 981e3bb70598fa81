"""Our inference for many classes against Detectron2's own ``fast_rcnn_inference``."""

import pytest
import torch
from detectron2.layers.nms import box_ops
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers, fast_rcnn_inference
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from small_detectors import make_batch, make_embeddings, make_target, make_vocabulary
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import boxes as torchvision_boxes

from ovd_d2.errors import OVDError
from ovd_d2.modeling import set_vocabulary
from ovd_d2.modeling.roi_heads import top_pairs_inference as exported
from ovd_d2.modeling.roi_heads.open_vocab_box_predictor import top_pairs_inference

room = __import__("sys").modules["ovd_d2.modeling.roi_heads.top_pairs_inference"]
SIZE = (60, 80)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def detections(results):
    """Per image (boxes, scores, classes, proposals)."""
    return [
        (found.pred_boxes.tensor, found.scores, found.pred_classes, rows)
        for found, rows in zip(*results)
    ]


def detectron2(boxes, scores, shapes, score_thresh, nms_thresh, topk):
    """Detectron2's result, with ties put in the order (proposal, class) before the cut: its own
    last sort leaves their order open."""
    out = []
    everything = fast_rcnn_inference(boxes, scores, shapes, score_thresh, nms_thresh, -1)
    for found in detections(everything):
        _, values, classes, rows = found
        order = torch.argsort(rows * 100_000 + classes)
        order = order[values[order].argsort(descending=True, stable=True)]
        out.append(tuple(field[order[:topk] if topk >= 0 else order] for field in found))
    return out


def assert_same(mine, theirs):
    assert len(mine) == len(theirs)
    for image_mine, image_theirs in zip(mine, theirs):
        for name, a, b in zip(("boxes", "scores", "classes", "rows"), image_mine, image_theirs):
            assert a.dtype == b.dtype and a.shape == b.shape, name
            assert torch.equal(a, b), name


def compare(boxes, scores, *settings, shape=SIZE):
    arguments = ([boxes], [scores], [shape], *settings)
    mine = top_pairs_inference(*arguments)
    assert mine[0][0].image_size == shape
    assert_same(detections(mine), detectron2(*arguments))
    pairs = scores[:, :-1][scores[:, :-1] > settings[0]]
    if len(pairs.unique()) == len(pairs):  # no ties: also the order is Detectron2's
        assert_same(detections(mine), detections(fast_rcnn_inference(*arguments)))
    return mine[0][0]


def random_case(seed, num, classes, levels=0, integers=False):
    """Clustered boxes, some outside the image, some empty; ``levels`` > 0: many equal scores."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(4, 2, generator=generator) * 80
    corners = centres[torch.randint(4, (num,), generator=generator)]
    corners = corners + torch.randn(num, 2, generator=generator) * 4 - 8
    sizes = torch.rand(num, 2, generator=generator) * 25 - 1
    boxes = torch.cat([corners, corners + sizes], dim=1)
    logits = torch.randn(num, classes + 1, generator=generator) * 2
    scores = logits.softmax(dim=1)
    if levels:
        scores = (logits.sigmoid() * levels).ceil() / levels
    return boxes.round() if integers else boxes, scores


def corrupt(boxes, scores, seed):
    """A few numbers that are not finite, in boxes, class scores and background scores."""
    generator = torch.Generator().manual_seed(seed)
    for value in (torch.nan, torch.inf, -torch.inf):
        for table in (boxes, scores):
            row = torch.randint(len(table), (), generator=generator)
            column = torch.randint(table.shape[1], (), generator=generator)
            table[row, column] = value


CASES = {
    "seed": st.integers(0, 10**6),
    "levels": st.sampled_from([0, 1, 3, 50]),
    "integers": st.booleans(),
    "broken": st.booleans(),
    "score_thresh": st.sampled_from([0.0, 0.02, 0.4, 2.0]),
    "nms_thresh": st.sampled_from([0.0, 0.3, 0.5, 0.6, 0.7, 1.0]),
}


@settings(max_examples=150, deadline=None)
@given(
    num=st.integers(0, 40),
    classes=st.integers(1, 12),
    topk=st.sampled_from([0, 1, 3, 20, 10_000]),
    chunk=st.integers(1, 30),
    block=st.integers(1, 9),
    **CASES,
)
def test_small_cases_in_every_partition(
    num, classes, topk, chunk, block, seed, levels, integers, broken, score_thresh, nms_thresh
):
    """Both sides are made to take their way for many pairs: NMS class by class on unshifted
    boxes there, in several chunks and from several lengths of the prefix here."""
    boxes, scores = random_case(seed, num, classes, levels, integers)
    if broken and num:
        corrupt(boxes, scores, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(box_ops, "batched_nms", torchvision_boxes._batched_nms_vanilla)
        patch.setattr(room, "_shifted_nms_limit", lambda boxes: -1)
        patch.setattr(room, "_CHUNK", chunk)
        patch.setattr(room, "_BLOCK", block)
        patch.setattr(room, "batched_nms", None)  # never called
        compare(boxes, scores, score_thresh, nms_thresh, topk)


@settings(max_examples=40, deadline=None)
@given(num=st.integers(0, 150), classes=st.integers(1, 100), topk=st.integers(-1, 400), **CASES)
def test_medium_cases_as_they_are(
    num, classes, topk, seed, levels, integers, broken, score_thresh, nms_thresh
):
    """0 to 15,000 pairs: on either side of the number where torchvision changes its way."""
    boxes, scores = random_case(seed, num, classes, levels, integers)
    if broken and num:
        corrupt(boxes, scores, seed)
    compare(boxes, scores, score_thresh, nms_thresh, topk)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("topk", [-1, 0, 300])
def test_a_large_dense_case(device, topk):
    boxes, scores = random_case(0, 400, 300)
    found = compare(boxes.to(device), scores.to(device), 0.0, 0.5, topk)
    assert len(found) == topk or topk == -1


def test_several_images_of_different_sizes():
    cases = [random_case(seed, num, 30) for seed, num in enumerate((200, 0, 3))]
    boxes, scores = (list(tensors) for tensors in zip(*cases))
    arguments = (boxes, scores, [(50, 70), (9, 9), (30, 20)], 0.0, 0.5, 100)
    mine = top_pairs_inference(*arguments)
    assert [len(found) > 0 for found in mine[0]] == [True, False, True]
    assert_same(detections(mine), detections(fast_rcnn_inference(*arguments)))
    assert top_pairs_inference([], [], [], 0.0, 0.5, 100) == ([], [])


def test_the_prefix_grows_while_too_few_survive(monkeypatch):
    """Every proposal has the same box, so each class keeps one pair; the 40th detection is pair
    11,701 by score."""
    boxes = torch.tensor([[5.0, 5.0, 50.0, 50.0]]).expand(300, 4)
    generator = torch.Generator().manual_seed(0)
    scores = torch.arange(600, -1, -1) + torch.rand(300, 601, generator=generator) * 0.9
    asked = []
    top_pairs = room._top_pairs

    def spy(scores, threshold, at_least):
        asked.append(at_least)
        rows, classes, found, complete = top_pairs(scores, threshold, at_least)
        assert torch.equal(found, scores[rows, classes])
        assert not complete
        assert len(rows) >= at_least
        left_out = torch.ones_like(scores, dtype=torch.bool)
        left_out[rows, classes] = False
        assert scores[left_out].max() <= scores[rows, classes].min()
        return rows, classes, found, complete

    monkeypatch.setattr(room, "_BLOCK", 1)  # exactly as many pairs as asked for
    monkeypatch.setattr(room, "_top_pairs", spy)
    found = compare(boxes, scores / 1000, 0.0, 0.5, 40)
    assert asked == [2048, 16384]
    assert found.pred_classes.tolist() == list(range(40))


@pytest.mark.parametrize("score", [1.0, 0.25])
def test_all_scores_equal(score):
    """Sigmoids saturate. The cut is then by proposal, and only the rows needed are looked at."""
    boxes, _ = random_case(0, 500, 1)
    scores = torch.full((500, 101), score)
    compare(boxes, scores, 0.0, 0.5, 50)
    rows, _, _, complete = room._top_pairs(scores[:, :-1], 0.0, 2048)
    assert not complete
    assert rows.max() < 500 and 2048 <= len(rows) < 50_000


@pytest.mark.parametrize("num_pairs", [900, 1100])
@pytest.mark.parametrize(
    ("nms_thresh", "right"),
    # IoU of [0, right] and [0, 10]: 6/10 in float32 is above 0.6 in float64, 5/10 is not above 0.5
    [(0.6, 6), (0.5, 5), (0.7, 7), (0.3, 3)],
)
def test_overlap_exactly_at_the_threshold(num_pairs, nms_thresh, right):
    boxes = torch.tensor([[0.0, 0.0, 10.0, 8.0], [0.0, 0.0, right, 8.0]])
    scores = torch.rand(2, num_pairs // 2 + 1, generator=torch.Generator().manual_seed(0)) + 0.1
    compare(boxes, scores, 0.0, nms_thresh, 10_000)


@pytest.mark.parametrize(("num_pairs", "name"), [(1000, "coordinate_trick"), (1001, "vanilla")])
def test_torchvision_still_changes_its_way_there(monkeypatch, num_pairs, name):
    """If this fails, ``_shifted_nms_limit`` has to follow torchvision."""
    taken = []
    for way in ("coordinate_trick", "vanilla"):
        monkeypatch.setattr(
            torchvision_boxes, f"_batched_nms_{way}", lambda *_, w=way: taken.append(w)
        )
    boxes = torch.zeros(num_pairs, 4)
    torchvision_boxes.batched_nms(boxes, boxes[:, 0], boxes[:, 0], 0.5)
    assert taken == [name]
    assert (num_pairs <= room._shifted_nms_limit(boxes)) == (name == "coordinate_trick")


def test_few_pairs_of_high_classes_are_rounded_as_detectron2_rounds_them():
    boxes, scores = random_case(1, 100, 30_000)
    boxes[:, 2:] = boxes[:, :2] + 1 + boxes[:, 2:] / 10
    high = torch.zeros_like(scores)
    high[:, 29_990:30_000] = scores[:, :10] * 1000
    size = (600, 800)
    boxes[0] = torch.tensor([0.0, 0.0, 800.0, 600.0])
    found = compare(boxes, high, 0.0, 0.5, 1000, shape=size)
    # The rounding matters here: boxes as they are give another result.
    low = torch.cat([high[:, 29_990:30_000], high[:, -1:]], dim=1)
    exact, _ = top_pairs_inference([boxes], [low], [size], 0.0, 0.5, 1000)
    assert len(exact[0]) != len(found)


@pytest.mark.parametrize("topk", [-1, 100])
@pytest.mark.parametrize("num", [0, 1, 1500])
def test_one_class(num, topk):
    boxes, scores = random_case(2, num, 1)
    compare(boxes, scores, 0.0, 0.5, topk)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_proposals_that_are_not_finite_are_dropped(value):
    boxes, scores = random_case(3, 50, 40)
    boxes[4, 2] = value
    scores[7, 39] = value
    scores[9, 40] = value  # background
    found = compare(boxes, scores, 0.0, 0.5, 300)
    assert len(found) == 300
    boxes[:] = value
    assert len(compare(boxes, scores, 0.0, 0.5, 300)) == 0


def test_scores_whose_sum_overflows_are_finite():
    boxes, scores = random_case(4, 60, 30)
    scores[3] = 3e38
    found = compare(boxes, scores, 0.0, 0.5, 300)
    assert found.scores[0] == torch.tensor(3e38)


def test_half_precision_scores():
    """As Detectron2 on the same numbers in float32 (it refuses them in half outside autocast)."""
    boxes, scores = random_case(5, 100, 60, levels=200)
    mine = top_pairs_inference([boxes], [scores.half()], [SIZE], 0.3, 0.5, 50)
    theirs = detectron2([boxes], [scores.half().float()], [SIZE], 0.3, 0.5, 50)
    (values,), (expected,) = detections(mine), theirs
    assert values[1].dtype == torch.float16
    assert_same([(values[0], values[1].float(), *values[2:])], [expected])


def test_inputs_stay_as_they_are():
    boxes, scores = random_case(6, 100, 60)
    before = boxes.clone(), scores.clone()
    top_pairs_inference([boxes], [scores], [SIZE], 0.0, 0.5, 50)
    assert torch.equal(boxes, before[0]) and torch.equal(scores, before[1])


class LargestTensor(TorchDispatchMode):
    """Remembers the bytes of the largest tensor made, views apart."""

    def __init__(self):
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        inputs = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if (
                isinstance(tensor, torch.Tensor)
                and tensor.untyped_storage().data_ptr() not in inputs
            ):
                self.nbytes = max(self.nbytes, tensor.nbytes)
        return result


def test_no_tensor_has_a_number_for_each_proposal_and_class():
    boxes, scores = random_case(7, 1000, 5000)
    with LargestTensor() as ours:
        top_pairs_inference([boxes], [scores], [SIZE], 0.0, 0.5, 300)
    assert 0 < ours.nbytes < scores.nbytes / 8
    boxes, scores = boxes[:200], scores[:200, :101]
    with LargestTensor() as theirs:  # the measure sees what Detectron2 copies
        fast_rcnn_inference([boxes], [scores], [SIZE], 0.0, 0.5, 300)
    assert theirs.nbytes >= 200 * 100 * 4 * 4


def test_boxes_that_belong_to_classes_are_refused():
    with pytest.raises(OVDError, match="CLS_AGNOSTIC_BBOX_REG True"):
        top_pairs_inference([torch.zeros(5, 8)], [torch.zeros(5, 3)], [SIZE], 0.0, 0.5, 10)


def proposals_of(sizes, num):
    out = []
    for seed, size in enumerate(sizes):
        corners = torch.rand(num, 2, generator=torch.Generator().manual_seed(seed)) * 60
        boxes = Boxes(torch.cat([corners, corners + 30], dim=1))
        out.append(Instances(size, proposal_boxes=boxes, objectness_logits=torch.zeros(num)))
    return out


@pytest.mark.parametrize("sigmoid", [True, False])
def test_the_predictor_infers_what_detectron2s_would(build, sigmoid):
    opts = ("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", sigmoid, "TEST.DETECTIONS_PER_IMAGE", 100)
    model = build("fpn", 5, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, *opts)
    vocabulary = make_vocabulary(90)
    set_vocabulary(model, vocabulary, make_embeddings(vocabulary))
    predictor = model.roi_heads.box_predictor
    proposals = proposals_of([(96, 128), (64, 64)], 40)
    with torch.no_grad():
        predictions = predictor(torch.rand(80, 32))
        mine = predictor.inference(predictions, proposals)
        stock = FastRCNNOutputLayers.inference(predictor, predictions, proposals)
        boxes = predictor.predict_boxes(predictions, proposals)
        scores = predictor.predict_probs(predictions, proposals)
    assert [len(found) for found in mine[0]] == [len(found) for found in stock[0]] == [100, 100]
    theirs = detectron2(boxes, scores, [(96, 128), (64, 64)], 0.0, 0.5, 100)
    assert_same(detections(mine), theirs)


def test_the_cascade_infers_what_detectron2s_would(build):
    model = build("cascade", 5, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0).eval()
    vocabulary = make_vocabulary(90)
    set_vocabulary(model, vocabulary, make_embeddings(vocabulary))
    heads = model.roi_heads
    images = model.preprocess_image(make_batch([make_target([], [])] * 2))
    proposals = proposals_of(images.image_sizes, 40)
    with torch.no_grad():
        features = model.backbone(images.tensor)
        mine = heads._forward_box(features, proposals)
        theirs = CascadeROIHeads._forward_box(heads, features, proposals)
    assert len(mine[0])
    for a, b in zip(mine, theirs):
        assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        assert torch.equal(a.scores, b.scores)
        assert torch.equal(a.pred_classes, b.pred_classes)


def test_it_is_exported():
    assert exported is top_pairs_inference
