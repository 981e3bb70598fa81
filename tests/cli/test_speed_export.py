"""``ovd speed export`` at a small size."""

import json
import sys
from pathlib import Path

import pytest
import warm_processes

from ovd_d2.benchmarks.speed import exported as bench
from ovd_d2.cli.app import main
from ovd_d2.errors import OVDError

OVD = str(Path(sys.executable).with_name("ovd"))


def test_a_process_prints_the_table():
    words = [OVD, "speed", "export", "--repeats", "1"]
    done = warm_processes.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("mini, 192 x 144 pixels, 160 classes; cpu, ")
    rows = {row[0]: row for row in map(str.split, lines) if row and row[0] in bench.GRAPHS}
    assert rows.keys() == bench.GRAPHS.keys()
    for row in rows.values():
        assert row[2].endswith("x") and row[-2:] == ["the", "same"]


def test_json(exported, capsys):
    main_words = ["speed", "export", "--model", str(exported), "--repeats", "3", "--json"]
    with pytest.raises(SystemExit) as exit_info:
        main(main_words)
    assert exit_info.value.code == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["size"], facts["num_classes"]) == ([96, 128], 3) and facts["detections"] > 0
    assert facts["seconds"].keys() == {"PyTorch", "onnxruntime", "TorchScript"}
    for side, seconds in facts["seconds"].items():
        assert len(seconds) == 3 and min(seconds) > 0
        assert facts["median_seconds"][side] == sorted(seconds)[1]
    assert facts["bytes"]["onnxruntime"] > 1e6


def test_the_ratio_is_of_turns():
    seconds = {"PyTorch": [2.0, 4.0, 9.0], "onnxruntime": [1.0, 1.0, 3.0]}
    found = bench.Measured("x", (1, 1), 1, seconds=seconds)
    assert found.ratio("onnxruntime") == 3.0 and found.median("PyTorch") == 4.0


def test_a_graph_that_differs_is_not_measured(exported, monkeypatch):
    """The comparison can fail: the graphs lose a detection here."""
    found_by_graph = bench.find_by_graph

    def without_best(*arguments):
        found = found_by_graph(*arguments)
        return bench.Found(*(value[1:] for value in vars(found).values()))

    monkeypatch.setattr(bench, "find_by_graph", without_best)
    with pytest.raises(OVDError, match="the graph lacks 1 of"):
        bench.measure_exported(exported, repeats=1)


def test_bad_input():
    with pytest.raises(OVDError, match="--repeats 0: give 1 or more"):
        bench.measure_exported("mini", repeats=0)
