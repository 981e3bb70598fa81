"""``ovd speed store`` at small sizes."""

import json

import pytest

from ovd_d2.benchmarks.speed.region_store import SideResult, StoreBenchmark, bench_store
from ovd_d2.cli.app import main
from ovd_d2.errors import OVDError


def test_sizes_and_times(tmp_path):
    result = bench_store(40, 30, 64, tmp_path)
    rows = 40 * 30
    assert 0 <= result.store.bytes - rows * (4 * 4 + 64 * 2) < 20_000  # boxes fp32, embeddings fp16
    assert result.pickles.bytes > rows * 64 * 4
    for what in ("write", "read_in_order", "read_at_random"):
        assert getattr(result.store, what) > 0 and getattr(result.pickles, what) > 0
    assert list(tmp_path.iterdir()) == []  # it cleans up


def test_ratios():
    result = StoreBenchmark(1, 1, 1, SideResult(100, 6.0, 8.0, 9.0), SideResult(50, 2.0, 2.0, 1.0))
    found = [result.times_faster(what) for what in ("bytes", "write", "read_at_random")]
    assert found == [2, 3, 9]


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 0, 1), (1, 1, -2)])
def test_bad_sizes_are_refused(sizes):
    with pytest.raises(OVDError, match="must be at least 1"):
        bench_store(*sizes)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(OVDError, match="cannot write its files"):
        bench_store(1, 1, 1, tmp_path / "nowhere")


def test_the_command(tmp_path, capsys):
    small = ["--images", "10", "--regions", "4", "--dim", "8", "--folder", str(tmp_path)]
    for more in (["--json"], []):
        with pytest.raises(SystemExit) as exit_info:
            main(["speed", "store", *small, *more])
        assert exit_info.value.code == 0
    text = capsys.readouterr().out
    facts, end = json.JSONDecoder().raw_decode(text)
    assert facts["images"] == 10 and facts["regions"] == 4
    assert facts["times_faster"].keys() == {"write", "read_in_order", "read_at_random"}
    for label in ("size", "write", "read in file order", "read at random"):
        assert f"\n {label} " in text[end:]
