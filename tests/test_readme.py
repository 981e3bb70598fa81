"""README's code blocks, run in the order in which they stand, in one folder (``code_blocks``)."""

import pytest
from code_blocks import ROOT, blocks, run_page

README = ROOT / "README.md"
NOT_RUN = {  # heading: blocks left out; no others
    "Install": 1,
    "What it does": 1,
    "Your own data": 1,
    "Models": 1,
    "Numbers": 1,
}


def test_only_marked_blocks_are_left_out():
    left_out = {}
    for block in blocks(README):
        if block.left_out or block.language not in ("bash", "python", "yaml", "text", ""):
            left_out[block.heading] = left_out.get(block.heading, 0) + 1
    assert left_out == NOT_RUN
    assert sum(block.language == "bash" for block in blocks(README)) >= 6
    assert sum(block.language == "python" for block in blocks(README)) >= 2


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_block_runs(cut_mini, tmp_path):
    run_page(README, tmp_path, cut_mini)
