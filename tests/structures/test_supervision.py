import pytest
import torch
from detectron2.structures import Boxes, Instances

from ovd_d2.structures import Supervision, is_box_supervised, rows_with, supervision_of


def target(tags=None, rows=0) -> Instances:
    rows = len(tags) if tags is not None else rows
    out = Instances((10, 10))
    out.gt_boxes = Boxes(torch.rand(rows, 4))
    out.gt_classes = torch.arange(rows)
    if tags is not None:
        out.supervision = torch.tensor(tags, dtype=torch.int64)
    return out


def test_untagged_rows_are_boxes():
    plain = target(rows=3)
    assert supervision_of(plain).tolist() == [0, 0, 0]
    assert rows_with(plain, Supervision.BOX) is plain
    assert len(rows_with(plain, Supervision.TEACHER_REGION)) == 0
    assert is_box_supervised(plain)


def test_rows_are_split_by_tag_and_keep_their_order():
    mixed = target([2, 0, 1, 0, 2])
    assert rows_with(mixed, Supervision.BOX).gt_classes.tolist() == [1, 3]
    assert rows_with(mixed, Supervision.TEACHER_REGION).gt_classes.tolist() == [0, 4]
    assert rows_with(mixed, Supervision.IMAGE_LABEL).gt_classes.tolist() == [2]


@pytest.mark.parametrize(
    "tags, expected",
    [([], True), ([0], True), ([2], True), ([1], False), ([1, 2], False), ([1, 0], True)],
)
def test_which_images_define_background(tags, expected):
    assert is_box_supervised(target(tags)) is expected
