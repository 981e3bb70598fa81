"""Negative names and words of a class: which rows a model scores, what is left of detections."""

import pytest
import torch
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st

from ovd_d2.errors import OVDError
from ovd_d2.inference.class_rules import ClassRules, class_rules, wanted_negatives
from ovd_d2.language import Vocabulary

MUGS = Vocabulary(
    names=("cat", "red_mug"),
    synonyms=(("cat", "kitty", "pet"), ("red_mug", "Cup", "pet", "cat")),
    definitions=("a pet.", "for tea."),
    is_novel=(False, True),
)


def found(rows, **more):
    """Instances of (x, score, row of the model): boxes of 10 x 10 at x."""
    x, scores, classes = zip(*rows) if rows else ((), (), ())
    x = torch.tensor(x, dtype=torch.float32)
    result = Instances((20, 200))
    result.pred_boxes = Boxes(torch.stack([x, x * 0, x + 10, x * 0 + 10], dim=1))
    result.scores = torch.tensor(scores, dtype=torch.float32)
    result.pred_classes = torch.tensor(classes, dtype=torch.int64)
    return result


def rows_of(result):
    x, scores = result.pred_boxes.tensor[:, 0].tolist(), result.scores.tolist()
    rounded = [round(score, 5) for score in scores]
    return list(zip(x, rounded, result.pred_classes.tolist(), strict=True))


def rules_of(owner, classes):
    names = [f"n{row}" for row in range(len(owner))]
    reported = Vocabulary.from_names(names[:classes])
    return ClassRules(reported, Vocabulary.from_names(names), tuple(owner))


def iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(r[2] - r[0]) * (r[3] - r[1]) for r in (a, b)]
    return width * height / (sum(areas) - width * height)


def plainly(boxes, scores, rows, owner, classes, overlap, exponents):
    """(index, score, class) of what is reported, one box after another."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    several = [owner.count(owner[row]) > 1 for row in rows]
    kept, total = [], {}
    for i in order:
        same = [j for j in range(len(scores)) if owner[rows[j]] == owner[rows[i]]]
        there = [j for j in same if several[i] and iou(boxes[i], boxes[j]) > overlap] or [i]
        if any(j in kept for j in there):
            continue
        kept.append(i)
        best = {}
        for j in there:
            best[rows[j]] = max(best.get(rows[j], 0.0), scores[j])
        total[i] = scores[i]
        if exponents is not None and several[i]:
            shares = [score ** (1 / exponents[row]) for row, score in best.items()]
            total[i] = min(sum(shares), 1) ** exponents[rows[i]]
    result = []
    for i in kept:
        beaten = any(
            owner[rows[j]] >= classes and total[j] > total[i] and iou(boxes[i], boxes[j]) > overlap
            for j in kept
        )
        if owner[rows[i]] < classes and not beaten:
            result.append((i, total[i], owner[rows[i]]))
    return sorted(result, key=lambda row: -row[1])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_as_a_plain_loop_says(data):
    owner = sorted(data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=6)))
    owner = [sorted(set(owner)).index(k) for k in owner]  # without gaps
    classes = data.draw(st.integers(1, max(owner) + 1))
    count = data.draw(st.integers(0, 9))
    corner = st.integers(0, 12)
    boxes = [[x := data.draw(corner), y := data.draw(corner), x + data.draw(st.integers(4, 12)),
              y + data.draw(st.integers(4, 12))] for _ in range(count)]  # fmt: skip
    scores = data.draw(st.permutations([0.05 + 0.09 * k for k in range(count)]))
    rows = data.draw(st.lists(st.sampled_from(range(len(owner))), min_size=count, max_size=count))
    exponent = st.sampled_from([1.0, 0.5, 1.8, 3.0])
    exponents = data.draw(st.none() | st.lists(exponent, min_size=6, max_size=6))
    instances = Instances((30, 30))
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4))
    instances.scores = torch.tensor(scores, dtype=torch.float32)
    instances.pred_classes = torch.tensor(rows, dtype=torch.int64)
    instances.place = torch.arange(count)
    got = rules_of(owner, classes).apply(
        instances, 0.45, None if exponents is None else torch.tensor(exponents)
    )
    wanted = plainly(boxes, scores, rows, owner, classes, 0.45, exponents)
    torch.testing.assert_close(got.scores, torch.tensor([s for _, s, _ in wanted]).float())
    close = [b - a < 1e-5 for (_, b, _), (_, a, _) in zip(wanted, wanted[1:])]
    if not any(close):  # the order of nearly equal sums is a matter of rounding
        assert got.place.tolist() == [i for i, _, _ in wanted]
        assert got.pred_classes.tolist() == [k for _, _, k in wanted]


def test_a_better_negative_at_the_place_takes_the_detection():
    rules = rules_of([0, 1, 2], 2)  # the last one is negative
    rows = [(0, 0.9, 0), (1, 0.8, 2), (2, 0.7, 1), (50, 0.6, 1), (52, 0.6, 2), (90, 0.5, 2)]
    result = rules.apply(found(rows), 0.5)
    assert rows_of(result) == [(0, 0.9, 0), (50, 0.6, 1)]  # of equals it stays
    assert len(rules.apply(found(rows), 0.82)) == 3  # (2, 0.7) overlaps (1, 0.8) by 9 / 11


def test_nothing_found_and_only_negatives():
    rules = rules_of([0, 1, 1], 1)
    for rows in ([], [(0, 0.9, 1), (30, 0.8, 2)]):
        result = rules.apply(found(rows), 0.5, torch.ones(3))
        assert len(result) == 0 and result.has("pred_classes")


def test_words_of_a_class_are_one_detection():
    rows = [(0, 0.5, 0), (1, 0.4, 1), (0, 0.2, 1), (40, 0.3, 1), (41, 0.25, 2)]
    rules = rules_of([0, 0, 1], 2)
    assert rows_of(rules.apply(found(rows), 0.5)) == [(0, 0.5, 0), (40, 0.3, 0), (41, 0.25, 1)]
    summed = rules.apply(found(rows), 0.5, torch.ones(3))  # the best of each word counts
    assert rows_of(summed) == [(0, 0.9, 0), (40, 0.3, 0), (41, 0.25, 1)]
    for exponents, total in (
        ([0.5, 0.5, 0.5], 0.41**0.5),
        ([3.0, 3.0, 1.0], (0.5 ** (1 / 3) + 0.4 ** (1 / 3)) ** 3),
        ([1.0, 2.0, 1.0], 0.5 + 0.4**0.5),  # the kept box is of the first word
        ([0.0, 0.0, 0.0], (0.5**20 + 0.4**20) ** 0.05),  # shares are not in the scores
    ):
        best = rules.apply(found(rows), 0.5, torch.tensor(exponents)).scores[0]
        assert float(best) == pytest.approx(min(total, 1), abs=1e-5)


def test_words_of_a_negative_add_up_too():
    """0.3 + 0.3 of one thing beat 0.5 of another."""
    rules = rules_of([0, 1, 1], 1)
    rows = [(0, 0.5, 0), (0, 0.3, 1), (0, 0.3, 2)]
    assert len(rules.apply(found(rows), 0.5, torch.ones(3))) == 0
    assert len(rules.apply(found(rows), 0.5)) == 1


def test_label_maps_score_the_best_word():
    maps = torch.tensor([1.0, 4.0, 3.0, -2.0]).view(4, 1, 1).expand(4, 2, 3)
    got = rules_of([0, 0, 1, 2], 3).apply_to_maps(maps)
    assert got[:, 1, 2].tolist() == [4.0, 3.0, -2.0]


def test_plain_vocabularies_stay_as_they_are():
    rules = class_rules(MUGS)
    assert rules.is_plain and rules.scored is MUGS


def test_a_row_per_word_without_those_that_are_shared():
    rules = class_rules(MUGS, synonyms="max")
    assert not rules.is_plain and rules.reported is MUGS
    # "pet" is a word of both, "cat" a name
    assert rules.scored.names == ("cat", "kitty", "red_mug", "Cup")
    assert rules.owner == (0, 0, 1, 1) and rules.most_words == 2
    assert rules.scored.definitions == ("a pet.", "a pet.", "for tea.", "for tea.")
    assert rules.scored.is_novel == (False, False, True, True)
    assert rules.scored.synonyms[1] == ("kitty",)
    with pytest.raises(OVDError, match='synonyms is \'sum\'; it must be "mean" or "max"'):
        class_rules(MUGS, synonyms="sum")


def test_a_name_of_one_list_is_no_synonym_in_the_other():
    negatives = Vocabulary(
        names=("cup", "dog"), synonyms=(("cup", "RED mug", "beaker"), ("dog", "puppy")),
        definitions=("for tea.", "it barks."),
    )  # fmt: skip
    rules = class_rules(MUGS, negatives)
    assert rules.reported is MUGS and rules.negatives == ("cup", "dog")
    assert rules.scored.names == ("cat", "red_mug", "cup", "dog")
    assert rules.scored.synonyms[1] == ("red_mug", "pet", "cat")  # no Cup
    assert rules.scored.synonyms[2:] == (("cup",), ("dog", "puppy"))
    assert rules.scored.definitions[2:] == ("", "it barks.")
    assert rules.owner == (0, 1, 2, 3)
    words = class_rules(MUGS, negatives, "max")
    assert words.scored.names == ("cat", "kitty", "red_mug", "cup", "dog", "puppy")
    assert words.owner == (0, 0, 1, 2, 3, 3)


def test_a_name_in_both_lists():
    with pytest.raises(OVDError, match="negatives has 'Red mug', which the vocabulary has too"):
        class_rules(MUGS, Vocabulary.from_names("dog, Red mug"))


def test_the_other_names_of_a_data_set_compete():
    from detectron2.data import MetadataCatalog

    MetadataCatalog.get("test_class_rules").set(
        thing_classes=["dog", "Cat", "red mug"], synonyms=[["dog", "pup"], ["Cat"], ["red mug"]]
    )
    try:
        kept = wanted_negatives("dataset:test_class_rules", MUGS)
        assert kept.names == ("dog",) and kept.synonyms == (("dog", "pup"),)
        with pytest.raises(OVDError, match="dataset:test_class_rules has no name"):
            wanted_negatives("dataset:test_class_rules", Vocabulary.from_names("dog, cat, red mug"))
    finally:
        MetadataCatalog.remove("test_class_rules")
