"""Rows of all processes, and where their gradients go."""

import pytest
import torch
from two_processes import in_two_processes

from ovd_d2.layers.gather_rows import gather_rows


def own_rows(rank):
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(3, 4, 5, generator=generator, dtype=torch.float64).requires_grad_()


def weights(rank):
    """Of every gathered number in the loss of a process."""
    generator = torch.Generator().manual_seed(10 + rank)
    return torch.randn(6, 4, 5, generator=generator, dtype=torch.float64)


def losses(rank, layout):
    """What it gathers, and the gradient of its rows; the gradient arrives in the layout that
    einsum, a transposed product or a sum leaves behind."""
    rows = own_rows(rank)
    gathered = gather_rows(rows)
    if layout == "expanded":
        gathered.sum().backward()
    else:
        given = weights(rank)
        arriving = {"as it is": given, "transposed": given.permute(2, 1, 0).contiguous()}[layout]
        arriving = arriving if layout == "as it is" else arriving.permute(2, 1, 0)
        assert arriving.is_contiguous() == (layout == "as it is")
        gathered.backward(arriving)
    return {"gathered": gathered.detach(), "gradient": rows.grad}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_gradients_are_summed_whatever_their_layout(tmp_path):
    layouts = ("as it is", "transposed", "expanded")
    ranks = in_two_processes(lambda rank: [losses(rank, name) for name in layouts], tmp_path)
    everything = torch.cat([own_rows(0), own_rows(1)]).detach()
    for rank, of_one in enumerate(ranks):
        wanted = (weights(0) + weights(1))[3 * rank : 3 * rank + 3]
        for layout, found in zip(layouts, of_one):
            assert torch.equal(found["gathered"], everything)
            expected = torch.full_like(wanted, 2.0) if layout == "expanded" else wanted
            assert torch.equal(found["gradient"], expected), layout


def test_one_process_gets_its_own_rows():
    rows = own_rows(0)
    assert gather_rows(rows) is rows
