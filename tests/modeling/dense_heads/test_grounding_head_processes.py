"""Two processes with an image each, one of them without objects, learn what one with both does."""

import pytest
import torch
from small_grounding_heads import anchors_of, randomised, small_head
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from two_processes import in_two_processes

SIZES = [(64, 96), (30, 40)]


class Training(nn.Module):
    """The sum of the losses of some of two images."""

    def __init__(self):
        super().__init__()
        self.head = randomised(small_head(dropout=0.0)).train()

    def forward(self, rows):
        generator = torch.Generator().manual_seed(0)
        features = [
            torch.randn(2, 8, -(-64 // stride), -(-96 // stride), generator=generator)
            for stride in self.head.strides
        ]
        text = torch.randn(2, 5, 12, generator=generator)
        boxes = [torch.tensor([[10.0, 5, 80, 60]]), torch.zeros(0, 4)]
        tokens = [torch.tensor([[0, 1, 1, 0, 0]]).bool(), torch.zeros(0, 5, dtype=torch.bool)]
        mask = torch.ones(2, 5, dtype=torch.bool)
        own = [level[rows] for level in features]
        outputs = self.head(own, text[rows], mask[rows], SIZES[rows])
        losses = self.head.losses(anchors_of(own), outputs, boxes[rows], tokens[rows], mask[rows])
        return sum(losses.values())


def gradients(model, rows):
    model(rows).backward()
    return {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_processes_equal_one(tmp_path):
    def of_rank(rank):
        return gradients(DistributedDataParallel(Training()), slice(rank, rank + 1))

    wanted = gradients(Training(), slice(0, 2))
    for found in in_two_processes(of_rank, tmp_path):
        assert found.keys() == wanted.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-4, msg=name)
