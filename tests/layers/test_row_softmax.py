"""Softmax of rows against fp64."""

import pytest
import torch

from ovd_d2.layers.row_softmax import row_softmax


def error(found, logits):
    """Largest relative one, where logits are not rounded much themselves."""
    exact = logits.double().softmax(dim=1)
    near = logits > logits.amax(dim=1, keepdim=True) - 4
    return (found / exact - 1).abs()[near].max()


@pytest.mark.parametrize("K", [4097, 100_001])
def test_long_rows_are_as_exact_as_short_ones(K):
    logits = torch.randn(40, K, generator=torch.Generator().manual_seed(0)) * 5
    before = logits.clone()
    assert error(row_softmax(logits), logits) < 6e-7
    assert torch.equal(logits, before)
    if K > 100_000:  # what it is for; if this fails torch has mended it
        assert error(logits.softmax(dim=1), logits) > 3e-6


@pytest.mark.parametrize("K", [1, 1203, 4096])
def test_short_rows_are_torchs_bit_by_bit(K):
    logits = torch.randn(9, K) * 5
    assert torch.equal(row_softmax(logits), logits.softmax(dim=1))


@pytest.mark.parametrize("K", [9, 5000])
def test_hard_rows(K):
    logits = torch.randn(5, K)
    logits[1, 3], logits[2, 4], logits[3, :-1], logits[4] = torch.nan, torch.inf, -torch.inf, -1e30
    found = row_softmax(logits)
    assert found[1].isnan().all() and found[2].isnan().any()
    assert found[3].tolist() == [0] * (K - 1) + [1]
    torch.testing.assert_close(found[4], torch.full((K,), 1 / K))
    assert row_softmax(logits[:0]).shape == (0, K)
