"""``ovd speed vocabulary`` on a tiny GLIP: both sides find the same, and the table says so."""

import json
import sys
from pathlib import Path

import pytest
import torch
from detectron2.structures import Boxes, Instances

from ovd_d2.benchmarks.speed import vocabulary as bench
from ovd_d2.cli.app import main
from ovd_d2.errors import OVDError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "modeling"))
from small_glip import small_config, small_text_backbone

SIZE = (64, 96)


@pytest.fixture
def cfg(monkeypatch):
    monkeypatch.setattr(
        "ovd_d2.modeling.meta_arch.glip.build_text_backbone", lambda _: small_text_backbone(256)
    )
    return small_config(TOPK_CANDIDATES_TEST=100000)


def test_both_sides_find_the_same(cfg):
    told = []
    cells = list(
        bench.measure_vocabulary(cfg, [7, 200], size=SIZE, repeats=2, progress=told.append)
    )
    assert [(cell.num_classes, cell.way) for cell in cells] == [
        (7, "same captions"), (7, "packed captions"), (200, "same captions"),
        (200, "packed captions"), (7, "late fusion"), (200, "late fusion"),
    ]  # fmt: skip
    for cell in cells:
        packed = cell.way == "packed captions"
        assert cell.differing == (None if packed else 0)
        assert cell.detections > 50
        assert len(cell.seconds["ours"]) == len(cell.seconds["usual"]) == 2
        assert min(cell.seconds["ours"] + cell.seconds["usual"] + [cell.text_seconds]) > 0
        assert cell.usual_captions == (1 if cell.num_classes == 7 else 5)
        assert cell.usual_run == (1 if cell.num_classes == 7 else 3)
        assert (cell.captions < cell.usual_captions) == (packed and cell.num_classes == 200)
    assert "200 classes: late fusion" in told and "7 classes: the usual way" in told


def test_a_difference_is_seen(cfg, monkeypatch):
    usual = bench.detect_usually
    monkeypatch.setattr(bench, "detect_usually", lambda m, i, p: usual(m, i.flip(2), p))
    cells = list(bench.measure_vocabulary(cfg, [7], size=SIZE, repeats=1))
    assert [cell.differing is None or cell.differing > 10 for cell in cells] == [True] * 3
    assert cells[0].differing is not None


def test_the_usual_way_runs_the_whole_model_on_every_caption(cfg):
    model = bench.random_model(cfg, fusion=True)
    prompts = model.prompts.for_vocabulary(bench.class_names(90), 40)
    calls = {"backbone": [], "text_backbone": [], "head": []}
    for name, shapes in calls.items():
        getattr(model, name).register_forward_pre_hook(
            lambda _, inputs, shapes=shapes: shapes.append(inputs)
        )
    found = bench.detect_usually(model, torch.zeros(3, *SIZE), prompts)
    assert [len(shapes) for shapes in calls.values()] == [3, 3, 3]
    assert [tokens.ids.shape for (tokens,) in calls["text_backbone"]] == [(1, 256)] * 3
    assert [tokens.mask.sum() < 256 for (tokens,) in calls["text_backbone"]] == [True] * 3
    assert found.pred_classes.max() > 80


def test_the_seconds_of_a_few_captions_stand_for_all(cfg, monkeypatch):
    timed = bench._timed
    monkeypatch.setattr(bench, "_timed", lambda *words: (timed(*words)[0], 3.0))
    cell = next(bench.measure_vocabulary(cfg, [200], size=SIZE, repeats=1))
    assert cell.seconds == {"ours": [3.0], "usual": [3.0 * 5 / 3]}
    assert cell.median("usual") == 5 and cell.ratio == 5 / 3
    cell = next(bench.measure_vocabulary(cfg, [200], size=SIZE, repeats=1, full=True))
    assert cell.seconds["usual"] == [3.0] and cell.usual_run == 5
    monkeypatch.setattr(bench, "BUDGET", 2.0)  # of our side the first run alone, without its text
    cell = next(bench.measure_vocabulary(cfg, [200], size=SIZE, repeats=4))
    assert cell.seconds["ours"] == [3.0 - cell.text_seconds] and len(cell.seconds["usual"]) == 1


def detections(*rows):
    """Of (x of the box, score, class)."""
    found = Instances(SIZE)
    x, scores, classes = torch.tensor(rows, dtype=torch.float32).reshape(-1, 3).T
    found.pred_boxes = Boxes(torch.stack([x, x, x + 9, x + 9], dim=1))
    found.scores, found.pred_classes = scores, classes.long()
    return found


def test_differing_counts_what_the_other_lacks():
    one = detections((1, 0.5, 3), (2, 0.4, 4000))
    assert bench.differing(one, detections((2.01, 0.40001, 4000), (1, 0.5, 3))) == 0
    assert bench.differing(one, detections((1, 0.5, 3))) == 1
    assert bench.differing(one, detections((1, 0.5, 3), (2, 0.4, 4001))) == 2
    assert bench.differing(one, detections((1, 0.5, 3), (2.3, 0.4, 4000))) == 2
    assert bench.differing(one, detections((1, 0.51, 3), (2, 0.4, 4000))) == 2
    assert bench.differing(detections(), one) == 2
    assert bench.differing(detections(), detections()) == 0


def test_names_are_of_lvis_and_then_of_imagenet():
    names = bench.class_names(1300)
    assert len(set(names)) == 1300 and names[:1203] == bench.class_names(1203)
    assert bench.class_names(2) == ["aerosol_can", "air_conditioner"]


def test_what_cannot_be_measured_is_refused(cfg):
    for wrong in ([0], [5, -1]):
        with pytest.raises(OVDError, match="have to be 1 or more"):
            next(bench.measure_vocabulary(cfg, wrong))
    for wrong in ({"repeats": 0}, {"size": (0, 5)}):
        with pytest.raises(OVDError, match="have to be 1 or more"):
            next(bench.measure_vocabulary(cfg, [5], **wrong))
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    with pytest.raises(OVDError, match="META_ARCHITECTURE is GeneralizedRCNN; give the config"):
        next(bench.measure_vocabulary(cfg, [5]))


@pytest.fixture
def speed(cfg, tmp_path, capsys):
    file = tmp_path / "small.yaml"
    file.write_text(cfg.dump())

    def run(*words, code=0):
        with pytest.raises(SystemExit) as exit_info:
            main(["speed", "vocabulary", "--config-file", str(file), *words])
        printed = capsys.readouterr()
        assert exit_info.value.code == code, printed.err
        return printed.err if code else printed.out

    return run


def test_json(speed):
    words = ("--classes", "130", "--size", "64x96", "--repeats", "1", "--json")
    facts = json.loads(speed(*words))
    assert facts["size"] == [64, 96] and facts["device"] == "cpu"
    same, packed, late = facts["cells"]
    assert (same["usual_run"], same["usual_captions"], same["captions"]) == (2, 4, 4)
    assert same["differing"] == late["differing"] == 0 and packed["differing"] is None
    assert same["ratio"] == pytest.approx(same["seconds"]["usual"][0] / same["seconds"]["ours"][0])


def test_table(speed):
    lines = speed("--classes", "130", "--size", "64x96", "--repeats", "1").splitlines()
    assert "small.yaml, random weights, 64x96; cpu" in lines[0]
    row = next(line for line in lines if "packed captions" in line)
    assert " 2 of 4 " in row and row.rstrip().endswith(" not compared")
    for way in ("same captions", "late fusion"):
        row = next(line for line in lines if way in line)
        assert row.split()[0] == "130" and row.rstrip().endswith(" the same") and "x " in row


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "64"], "--size 64: give height and width, such as 480x640."),
        (["--size", "64xwide"], "--size 64xwide: give them as 1x2."),
        (["--classes", "few"], "--classes few: give whole numbers with commas."),
        (["--classes", "0"], "have to be 1 or more"),
    ],
)
def test_bad_input(speed, words, message):
    assert message in speed(*words, code=2)
