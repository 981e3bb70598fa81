import pytest
import torch

from ovd_d2.errors import OVDError
from ovd_d2.structures import RegionEmbeddings


def test_rows_can_be_chosen():
    regions = RegionEmbeddings(torch.arange(12.0).view(3, 4), torch.eye(3), torch.tensor([1, 2, 3]))
    assert len(regions) == 3
    for rows in (slice(0, 2), torch.tensor([0, 1]), torch.tensor([True, True, False])):
        chosen = regions[rows]
        assert torch.equal(chosen.boxes, regions.boxes[:2])
        assert torch.equal(chosen.embeddings, torch.eye(3)[:2])
        assert chosen.scores.tolist() == [1, 2]
    assert regions[:0].embeddings.shape == (0, 3)
    assert RegionEmbeddings(regions.boxes, regions.embeddings)[1:].scores is None


@pytest.mark.parametrize(
    ("boxes", "embeddings", "scores"),
    [
        ((3, 5), (3, 8), None),
        ((4,), (1, 8), None),
        ((), (0, 8), None),
        ((3, 4), (2, 8), None),
        ((3, 4), (3,), None),
        ((3, 4), (3, 8), (2,)),
        ((3, 4), (3, 8), (3, 1)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(boxes, embeddings, scores):
    scores = None if scores is None else torch.zeros(scores)
    with pytest.raises(OVDError, match=r"boxes \(R, 4\)"):
        RegionEmbeddings(torch.zeros(boxes), torch.zeros(embeddings), scores)
