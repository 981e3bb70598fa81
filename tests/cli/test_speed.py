"""``ovd speed`` at small sizes."""

import json
import sys
from pathlib import Path

import pytest
import torch
import warm_processes

from ovd_d2.benchmarks.speed import blocked_detection
from ovd_d2.benchmarks.speed import detection_postprocessing as bench_inference
from ovd_d2.cli.app import main
from ovd_d2.errors import OVDError

OVD = str(Path(sys.executable).with_name("ovd"))


def bench(*words):
    result = warm_processes.run([OVD, "speed", *words], capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_inference_json():
    words = ("--classes", "1,40", "--proposals", "60", "--topk", "30", "--repeats", "3", "--json")
    facts = json.loads(bench("inference", *words))
    assert (facts["proposals"], facts["topk"], facts["device"]) == (60, 30, "cpu")
    cells = {(cell["classes"], cell["scores"]): cell for cell in facts["cells"]}
    assert cells.keys() == {(1, "dense"), (1, "sparse"), (40, "dense"), (40, "sparse")}
    assert cells[40, "dense"]["pairs_above_threshold"] == 60 * 40
    for cell in cells.values():
        assert cell["identical"] is True
        assert 0 < cell["detections"] <= 30
        ours, theirs = cell["ours"], cell["detectron2"]
        assert len(ours["seconds"]) == len(theirs["seconds"]) == 3
        assert sorted(ours["seconds"])[1] == ours["median_seconds"] > 0
        assert cell["ratio"] == theirs["median_seconds"] / ours["median_seconds"]
    assert [(c["num_classes"], c["kind"]) for c in facts["blocks"]] == [
        (1, "softmax"), (1, "sigmoid"), (40, "softmax"), (40, "sigmoid")
    ]  # fmt: skip
    for cell in facts["blocks"]:
        assert cell["same"] is True
        assert cell["difference"] <= (0 if cell["kind"] == "sigmoid" else 1e-6)
        assert len(cell["seconds"]["ours"]) == len(cell["seconds"]["product"]) == 3


def test_inference_table_skips_what_takes_minutes():
    words = ("--classes", "17000,51000", "--proposals", "300", "--repeats", "1", "--dim", "16")
    lines = bench("inference", *words).splitlines()
    dense = next(line for line in lines if " dense " in line and "17,000" in line)
    assert "5,100,000" in dense and " skipped " in dense and "300 not compared" in dense
    sparse = next(line for line in lines if " sparse " in line and "17,000" in line)
    assert "skipped" not in sparse and sparse.rstrip().endswith("300 identical")
    skipped = next(line for line in lines if line.startswith("skipped: "))
    assert skipped.endswith("--full runs it.")
    blocks = [line.split() for line in lines if line.split()[1:2] in (["softmax"], ["sigmoid"])]
    assert [(line[0], line[-3:-1]) for line in blocks[:2]] == [
        ("17,000", ["300", "identical,"])
    ] * 2
    assert [(line[0], line[-3:]) for line in blocks[2:]] == [
        ("51,000", ["300", "not", "compared"])
    ] * 2
    head = next(line for line in lines if " detectron2 s " in line)
    for name in (" ours s ", " ratio ", " detections"):  # right-aligned below their heads
        end = head.rindex(name) + len(name.rstrip())
        for line in (dense, sparse):
            assert line[end - 1] != " " or name == " ratio "
            assert line[end : end + 1] in ("", " ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--classes", "80,many"], "--classes 80,many: give whole numbers with commas."),
        (["--classes", "0"], "Numbers of classes, proposals, detections and repeats"),
        (["--classes", "5", "--proposals", "-3"], "have to be 1 or more"),
        (["--classes", "5", "--device", "abacus"], "--device abacus: "),
    ],
)
def test_bad_input(words, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["speed", "inference", *words])
    captured = capsys.readouterr()
    assert exit_info.value.code == 2
    assert captured.out == ""
    errors = captured.err.strip().splitlines()
    assert errors[-1].startswith("error: ") and message in errors[-1]


def test_a_difference_is_reported(monkeypatch):
    """The comparison can fail: Detectron2's side gets another IoU threshold here."""

    def other(boxes, scores, shapes, score_thresh, nms_thresh, topk):
        return bench_inference.fast_rcnn_inference(boxes, scores, shapes, score_thresh, 0.1, topk)

    monkeypatch.setitem(bench_inference.SIDES, "detectron2", other)
    cells = list(bench_inference.measure_inference([9], proposals=100, topk=50, repeats=1))
    assert [cell.identical for cell in cells] == [False, False]


def test_a_difference_to_a_table_is_reported(monkeypatch):
    """The comparison can fail: the table has other probabilities here."""
    monkeypatch.setattr(blocked_detection, "row_softmax", lambda logits: logits.softmax(1) ** 1.01)
    softmax, sigmoid = blocked_detection.measure_blocks([300], proposals=100, dim=64, repeats=1)
    assert softmax.same is False or softmax.difference > 1e-3
    assert sigmoid.same is True
    assert sigmoid.difference == 0


def test_embeddings_that_do_not_fit_are_one_sentence(monkeypatch):
    def no_memory(num_classes, dim):
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(blocked_detection, "class_embeddings", no_memory)
    with pytest.raises(OVDError, match="300 embeddings of 64 numbers do not fit into memory"):
        next(blocked_detection.measure_blocks([300], proposals=100, dim=64, repeats=1))


def test_a_slow_side_is_not_repeated(monkeypatch):
    monkeypatch.setattr(bench_inference, "BUDGET", 0.0)
    cell = next(bench_inference.measure_inference([9], proposals=20, repeats=5))
    assert [len(seconds) for seconds in cell.seconds.values()] == [1, 1]


def test_full_runs_everything(monkeypatch):
    monkeypatch.setattr(bench_inference, "MAX_PAIRS", 10)
    for full in (False, True):
        cell = next(bench_inference.measure_inference([9], proposals=20, repeats=1, full=full))
        assert ("detectron2" in cell.seconds) == full
        assert (cell.ratio is not None) == full


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's high-water mark")
def test_peak_memory_sees_what_is_freed_again():
    def run():
        torch.ones(30_000_000)

    peak = bench_inference.peak_memory(run, torch.device("cpu"))
    assert 110e6 < peak < 200e6
    assert bench_inference.peak_memory(lambda: None, torch.device("cpu")) < 20e6
