"""Which candidates of a dense head become detections."""

import pytest
import torch

from ovd_d2.modeling.dense_heads import Candidates
from ovd_d2.modeling.dense_heads.candidates import without_duplicates

BOXES = torch.tensor([[0.0, 0, 10, 10], [0, 1, 10, 11], [0, 0, 10, 10], [50, 50, 60, 60]])
SCORES = torch.tensor([0.6, 0.9, 0.5, 0.3])
CLASSES = torch.tensor([4, 4, 20_000, 4])


@pytest.mark.parametrize("most", [-1, 0, 1, 2, 3, 100])
def test_no_more_than_asked_for_and_minus_one_is_all(most):
    (found,) = without_duplicates([Candidates(BOXES, SCORES, CLASSES)], [(64, 64)], 0.5, most)
    expected = [1, 2, 3][: 3 if most == -1 else most]  # 0 is a duplicate of 1, 2 of another class
    assert found.scores.tolist() == SCORES[expected].tolist()
    assert found.pred_classes.tolist() == CLASSES[expected].tolist()
    assert torch.equal(found.pred_boxes.tensor, BOXES[expected])
