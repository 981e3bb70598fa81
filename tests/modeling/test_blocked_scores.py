"""Scores by blocks of classes against tables of all of them."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ovd_d2.modeling.roi_heads import blocked_scores as room
from ovd_d2.modeling.roi_heads.blocked_scores import RUN, BlockedScores, Opinion
from ovd_d2.modeling.roi_heads.blocked_scoring import _fused
from ovd_d2.modeling.roi_heads.score_fusion import ScoreRule
from ovd_d2.modeling.roi_heads.top_pairs_inference import top_pairs_inference

top_pairs = __import__("sys").modules["ovd_d2.modeling.roi_heads.top_pairs_inference"]
SIZE = (60, 80)
KINDS = ("softmax", "names", "sigmoid", "bias", "ensemble", "text and objectness",
         "image and objectness", "cascade", "cascade of sigmoids", "cascade ensemble")  # fmt: skip


def make_case(kind, R, K, seed=0, *, dim=6, span=3, scale=0.5, distinct=0):
    """Opinions and what is needed to combine them. Embeddings are small whole numbers and scales
    powers of two, so that every product is exact whatever BLAS does; ``distinct`` > 0: of so many
    regions and classes, the others are copies."""
    generator = torch.Generator().manual_seed(seed)

    def whole(count):
        rows = torch.randint(-span, span + 1, (distinct or count, dim), generator=generator)
        if distinct:
            rows = rows[torch.randint(distinct, (count,), generator=generator)]
        return rows.float()

    def opinion(sigmoid=False, background=False, bias=False):
        return Opinion(
            whole(R), whole(K), scale, sigmoid=sigmoid,
            bias=torch.tensor([-0.25]) if bias else None,
            background=whole(R)[:, :1] if background else None,
        )  # fmt: skip

    count = 3 if "cascade" in kind else 1
    sigmoid = "sigmoid" in kind or kind == "bias"
    texts = [
        opinion(sigmoid, not sigmoid and kind != "names", kind == "bias") for _ in range(count)
    ]
    image = (
        opinion() if kind == "cascade ensemble" or "ensemble" in kind or "image" in kind else None
    )
    rule = None
    if "ensemble" in kind or "objectness" in kind:
        rule = ScoreRule(
            combine="ensemble" if "ensemble" in kind else "objectness",
            novel_partner="objectness" if kind == "cascade ensemble" else "text",
            novel_power=3.0 if kind == "cascade ensemble" else 1.0,
        )
    objectness = torch.rand(R, generator=generator)
    is_novel = (torch.rand(K, generator=generator) < 0.3).tolist()
    weights = rule.class_weights(is_novel) if "ensemble" in kind else None
    return SimpleNamespace(
        texts=texts, image=image, rule=rule, objectness=objectness, weights=weights
    )


def in_blocks(case) -> BlockedScores:
    return _fused(case.texts, case.image, case.objectness, case.rule, case.weights)


def table_of(opinion, exactly_like: Opinion | None = None):
    """(R, K) probabilities: torch's softmax in fp64, or with the sums of a blocked opinion."""
    logits = opinion.regions @ opinion.classes.T * opinion.scale
    logits = logits if opinion.bias is None else logits + opinion.bias
    if opinion.sigmoid:
        return logits.sigmoid()
    if exactly_like is not None:
        return (logits - exactly_like.largest).exp() / exactly_like.total.float()
    if opinion.background is None:
        return logits.double().softmax(dim=1).float()
    return torch.cat([logits, opinion.background], 1).double().softmax(dim=1)[:, :-1].float()


def dense(case, exactly=False):
    """(R, K) scores, one table after the other."""
    tables = [table_of(o, o if exactly else None) for o in case.texts]
    text = sum(tables) * (1 / len(tables)) if len(tables) > 1 else tables[0]
    if case.rule is None:
        return text
    image = None if case.image is None else table_of(case.image, case.image if exactly else None)
    padded = torch.cat([text, text[:, :1]], dim=1)
    novel = [] if case.weights is None else (case.weights.text < case.weights.image).tolist()
    return case.rule(padded, image, case.objectness, novel)[:, :-1]


def random_boxes(num, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(num, 2, generator=generator) * 40
    return torch.cat([corners, corners + torch.rand(num, 2, generator=generator) * 40], dim=1)


def detect(boxes, scores, *settings):
    ((found,), (rows,)) = top_pairs_inference([boxes], [scores], [SIZE], *settings)
    return found.pred_boxes.tensor, found.scores, found.pred_classes, rows


def same(case, boxes, *settings):
    """Detections by blocks are, bit by bit, those of a table of the same scores."""
    scores = in_blocks(case)
    mine = detect(boxes, scores, *settings)
    if case.rule is not None and case.rule.combine == "objectness" and case.image is not None:
        for opinion in case.texts:  # that nobody has looked at
            opinion.look()
    table = dense(case, exactly=True)
    finite = table.isfinite().all(dim=1)
    assert torch.equal(scores.is_finite(), finite)
    rtol = 1e-6 if case.weights is None else 1e-5  # exp of logarithms as low as -80
    torch.testing.assert_close(table[finite], dense(case)[finite], rtol=rtol, atol=1e-15)
    theirs = detect(boxes, torch.cat([table, table[:, :1]], dim=1), *settings)
    for name, a, b in zip(("boxes", "scores", "classes", "rows"), mine, theirs):
        assert torch.equal(a, b), name
    return mine


def patched(patch, R, seed, chunk=1024):
    """Several blocks, several chunks of runs; with a small ``chunk`` a bound decides which runs are
    looked at again, and it is lowered."""
    patch.setitem(room._BLOCK_BYTES, "cpu", 4 * RUN * max(R, 1) * (1 + seed % 3))
    patch.setattr(room, "_RUNS_AT_ONCE", 1 + seed % 5)
    if chunk < 1024:
        patch.setattr(top_pairs, "_CHUNK", chunk)
        patch.setattr(top_pairs, "_shifted_nms_limit", lambda boxes: -1)


@settings(max_examples=120, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    R=st.sampled_from([0, 32, 64]),  # torch rounds exp otherwise in what is left of 32 numbers
    K=st.integers(1, 700),
    seed=st.integers(0, 10**6),
    distinct=st.sampled_from([0, 0, 1, 3]),
    threshold=st.sampled_from([0.0, 1e-3, 0.3, 2.0]),
    nms=st.sampled_from([0.0, 0.5, 1.0]),
    topk=st.sampled_from([-1, 0, 1, 20, 300]),
    broken=st.booleans(),
    scale=st.sampled_from([0.25, 1.0, 16.0]),
    chunk=st.sampled_from([1, 3, 20, 1024]),
)
def test_detections_are_those_of_a_table(
    kind, R, K, seed, distinct, threshold, nms, topk, broken, scale, chunk
):
    case = make_case(kind, R, K, seed, distinct=distinct, scale=scale)
    boxes = random_boxes(R, seed)
    if broken and R > 4:
        case.texts[-1].regions[1] = torch.nan
        case.texts[0].regions[2, 3] = torch.inf
        boxes[3, 0] = torch.nan
        if case.image is not None:
            case.image.regions[4] = torch.nan
    with pytest.MonkeyPatch.context() as patch:
        patched(patch, R, seed, chunk)
        same(case, boxes, threshold, nms, topk)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    R=st.integers(1, 40),
    K=st.integers(1, 700),
    seed=st.integers(0, 10**6),
    topk=st.sampled_from([-1, 1, 20, 300]),
    chunk=st.sampled_from([3, 1024]),
)
def test_any_number_of_regions(kind, R, K, seed, topk, chunk):
    """Up to rounding, without ties."""
    case, boxes = make_case(kind, R, K, seed), random_boxes(R, seed)
    generator = torch.Generator().manual_seed(seed)
    for opinion in (*case.texts, *([case.image] if case.image else [])):
        opinion.regions = torch.randn(R, 6, generator=generator)
        opinion.classes = torch.randn(K, 6, generator=generator)
    table = dense(case)
    with pytest.MonkeyPatch.context() as patch:
        patched(patch, R, seed, chunk)
        _, scores, classes, rows = detect(boxes, in_blocks(case), 1e-3, 0.5, topk)
        _, expected, _, _ = detect(boxes, torch.cat([table, table[:, :1]], 1), 1e-3, 0.5, topk)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(scores, table[rows, classes], rtol=1e-5, atol=0)
    assert len({*zip(rows.tolist(), classes.tolist())}) == len(rows)


def test_bounds_spare_most_runs(monkeypatch):
    """Of 1000 x 3000 scores a few thousand are computed again."""
    case = make_case("softmax", 1024, 3000, dim=8)
    looked_at = []
    of_runs = BlockedScores.of_runs

    def spy(scores, rows, runs):
        looked_at.append(len(rows))
        return of_runs(scores, rows, runs)

    monkeypatch.setattr(BlockedScores, "of_runs", spy)
    same(case, random_boxes(1024), 0.0, 0.5, 100)
    assert 2048 <= sum(looked_at) < 10_000 < 1000 * 3000 / RUN


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "ensemble", "cascade"])
def test_all_scores_equal(kind):
    """Then the first proposals and classes win, and only their rows are looked at again."""
    case = make_case(kind, 320, 2000, distinct=1)
    for opinion in (*case.texts, *([case.image] if case.image else [])):
        opinion.background = None
    boxes = torch.arange(320.0)[:, None] + torch.tensor([0.0, 0.0, 0.2, 9.0])
    boxes[:, [1, 3]] = torch.tensor([3.0, 12.0])
    if case.weights is not None:
        case.weights = case.rule.class_weights([False] * 2000)
    _, scores, classes, rows = same(case, boxes % 60, 0.0, 0.5, 50)
    assert (scores == scores[0]).all()
    assert rows.tolist() == [0] * 50 and classes.tolist() == list(range(50))


def test_products_that_are_rounded_otherwise_in_another_shape(monkeypatch):
    """The second look may round a product otherwise; what is found then still is the beginning of
    one order, and the scores are those of a table up to this rounding."""
    case = make_case("softmax", 200, 1500, dim=16)
    for opinion in case.texts:
        opinion.scale = 3.7
        opinion.regions /= opinion.regions.norm(dim=1, keepdim=True).clamp(min=1)
    product = torch.mm
    monkeypatch.setattr(
        room.torch,
        "mm",
        lambda a, b, out=None: product(a, b, out=out).mul_(1 + 1e-6 * len(a) / 200),
    )
    scores = in_blocks(case)
    boxes = random_boxes(200)
    _, found, classes, rows = detect(boxes, scores, 0.0, 0.5, 300)
    table = dense(case)
    _, expected, _, _ = detect(boxes, torch.cat([table, table[:, :1]], 1), 0.0, 0.5, 300)
    torch.testing.assert_close(found, table[rows, classes], rtol=2e-5, atol=0)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=0)
    assert (found.diff() <= 0).all()


def test_columns_are_those_of_the_table():
    case = make_case("ensemble", 30, 400)
    scores = in_blocks(case)
    wanted = torch.tensor([399, 0, 7, 7])
    torch.testing.assert_close(scores.columns(wanted), dense(case)[:, wanted], rtol=1e-5, atol=0)


def test_some_regions_need_no_other_pass(monkeypatch):
    case = make_case("cascade ensemble", 30, 400)
    scores = in_blocks(case)
    before = scores.columns(torch.arange(400))
    monkeypatch.setattr(room, "blocks_of", None)
    rows = torch.tensor([5, 29, 5])
    some = scores.of_rows(rows)
    assert len(some) == 3
    torch.testing.assert_close(some.columns(torch.arange(400)), before[rows])
    assert torch.equal(some.maxima, scores.maxima[rows])


def test_the_last_block_is_no_remnant():
    """BLAS rounds a product with a few columns otherwise."""
    regions = torch.zeros(1000, 4)
    for K in (1, 63, 64, 1000, 1024, 1025, 20_000, 20_001):
        blocks = [block for block, _ in room.blocks_of(regions, K)]
        assert [b.start for b in blocks[1:]] == [b.stop for b in blocks[:-1]]
        assert blocks[0].start == 0 and blocks[-1].stop == K
        widths = [block.stop - block.start for block in blocks]
        assert widths[-1] >= widths[0] and all(width % RUN == 0 for width in widths[:-1])
        assert all(b.shape == (1000, w) for (_, b), w in zip(room.blocks_of(regions, K), widths))
