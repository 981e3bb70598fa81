"""Which boxes are taken, and who is asked for what."""

import pytest
import torch
from torchvision.ops import box_iou

from ovd_d2.language import Vocabulary
from ovd_d2.proposals.queries import AskedInWords, class_queries
from ovd_d2.pseudo_labelling import (
    OBJECT_QUERIES,
    choose_for_label,
    choose_for_phrase,
    choose_objects,
)

SIZE = (60, 80)  # height, width
NAN = float("nan")


def found(*rows):
    rows = torch.tensor(rows, dtype=torch.float32).view(-1, 5)
    return rows[:, :4], rows[:, 4]


def test_the_best_box_of_a_label():
    boxes, scores = choose_for_label(found([0, 0, 9, 9, 0.2], [5, 5, 20, 20, 0.7]), SIZE)
    assert boxes.tolist() == [[5, 5, 20, 20]] and scores.tolist() == pytest.approx([0.7])


@pytest.mark.parametrize("rows", [[], [[0, 0, NAN, 9, 0.9]], [[0, 0, 9, 9, NAN]],
                                  [[90, 0, 99, 9, 0.9]], [[5, 5, 5, 9, 1]]])  # fmt: skip
def test_no_usable_box_is_no_error(rows):
    boxes, scores = choose_for_label(found(*rows), SIZE)
    assert boxes.shape == (0, 4) and scores.shape == (0,)


def test_boxes_end_at_the_image():
    boxes, _ = choose_for_label(found([-5, -5, 999, 30, 0.5]), SIZE)
    assert boxes.tolist() == [[0, 0, 80, 30]]


@pytest.mark.parametrize(("least", "count"), [(None, 1), (0.69, 1), (0.7, 0), (0.95, 0)])
def test_the_score_must_be_above_the_least(least, count):
    one = (torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([0.7], dtype=torch.float64))
    assert len(choose_for_label(one, SIZE, min_score=least)[0]) == count


def test_several_boxes_of_a_label_do_not_repeat_each_other():
    rows = found([0, 0, 10, 10, 0.9], [0, 0, 10, 11, 0.8], [40, 0, 50, 10, 0.1])
    boxes, _ = choose_for_label(rows, SIZE, topk=2)
    assert boxes[:, 0].tolist() == [0, 40]


def test_objects_are_pooled_over_the_queries():
    first = found([0, 0, 10, 10, 0.6], [30, 30, 40, 40, 0.5])
    second = found([0, 0, 10, 10.5, 0.9], [60, 0, 70, 10, 0.1])
    boxes, scores = choose_objects([first, second, found()], SIZE, topk=2)
    assert boxes.tolist() == [[0, 0, 10, 10.5], [30, 30, 40, 40]]
    assert scores.tolist() == pytest.approx([0.9, 0.5])
    assert len(choose_objects([first, second], SIZE, min_score=0.5)[0]) == 1
    assert choose_objects([], SIZE)[0].shape == (0, 4)


def test_fifty_boxes_of_a_query_count():
    many = torch.rand(80, 4) * 2
    many = torch.cat([many[:, :2], many[:, :2] + 5], dim=1)
    many[50:] += torch.arange(30.0)[:, None] * 1.5 + 10  # apart, but the lowest scored
    boxes, _ = choose_objects([(many, torch.arange(80.0).flip(0))], SIZE, topk=99)
    assert boxes.max() < 10
    assert (box_iou(boxes, boxes).fill_diagonal_(0) <= 0.5).all()


class Noted:
    name = "noted@1"

    def __call__(self, image, queries):
        self.queries = list(queries)
        return [found([0, 0, 9, 9, 0.5]) for _ in queries]


def test_labels_are_asked_for_by_name_and_objects_in_four_wordings():
    detector, image = Noted(), torch.zeros(3, *SIZE, dtype=torch.uint8)
    vocabulary = Vocabulary.from_names(["aerosol_can", "bow_(weapon)", "Dog"])
    source = AskedInWords(detector, class_queries(vocabulary))
    assert len(source({}, image, (2, 0))) == 2 and source.name == "noted@1"
    assert detector.queries == ["every dog", "every aerosol can"]
    assert len(AskedInWords(detector, OBJECT_QUERIES)({}, image)) == 4
    assert detector.queries == list(OBJECT_QUERIES)
    AskedInWords(detector, ["all small objects"])({}, image)
    assert detector.queries == ["all small objects"]


def test_all_boxes_of_a_phrase_from_the_threshold_on():
    """Overlapping ones too; cut to the image; no thin and no strange ones."""
    rows = [[0, 0, 9, 9, 0.2], [5, 5, 90, 20, 0.7], [5, 5, 80, 21, 0.5], [3, 3, 3, 9, 0.9],
            [0, 0, 9, 9, NAN]]  # fmt: skip
    boxes, scores = choose_for_phrase(found(*rows), SIZE, 0.5)
    assert boxes.tolist() == [[5, 5, 80, 20], [5, 5, 80, 21]]
    assert scores.tolist() == pytest.approx([0.7, 0.5])
    assert [len(values) for values in choose_for_phrase(found(), SIZE, 0.0)] == [0, 0]
