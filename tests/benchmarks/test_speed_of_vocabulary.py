"""``ovd speed vocabulary`` on a tiny GLIP and DetCLIP: both sides of GLIP find the same, more names
than 80 cost DetCLIP what they cost, and the table says so."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from detectron2.structures import Boxes, Instances

from ovd_d2.benchmarks.speed import vocabulary as bench
from ovd_d2.benchmarks.speed import vocabulary_glip, vocabulary_ways
from ovd_d2.benchmarks.speed.vocabulary_detclip import DetCLIPSubject
from ovd_d2.benchmarks.speed.vocabulary_ways import Cell, Way
from ovd_d2.cli.app import main
from ovd_d2.errors import OVDError
from ovd_d2.language.prompts import clean_name

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "modeling"))
from small_glip import small_config, small_text_backbone

SIZE = (64, 96)


@pytest.fixture
def cfg(monkeypatch):
    monkeypatch.setattr(
        "ovd_d2.modeling.meta_arch.glip.build_text_backbone", lambda _: small_text_backbone(256)
    )
    return small_config(TOPK_CANDIDATES_TEST=100000)


@pytest.fixture
def detclip_cfg():
    cfg = small_config()
    cfg.MODEL.META_ARCHITECTURE = "DetCLIP"
    keys = cfg.MODEL.DETCLIP
    keys.NUM_CONVS, keys.NORM_GROUPS, keys.EMBED_DIM = 1, 4, 16
    keys.TEXT.WIDTH, keys.TEXT.HEADS, keys.TEXT.LAYERS = 16, 2, 1
    return cfg


def measured(*configs, classes, **options):
    return list(bench.measure_vocabulary(configs, classes, size=SIZE, **options))


def test_both_sides_find_the_same(cfg):
    told = []
    cells = measured(cfg, classes=[7, 200], repeats=2, progress=told.append)
    assert [(cell.num_classes, cell.way) for cell in cells] == [
        (7, "same captions"), (7, "packed captions"), (7, "late fusion"),
        (200, "same captions"), (200, "packed captions"), (200, "late fusion"),
    ]  # fmt: skip
    for cell in cells:
        packed = cell.way == "packed captions"
        assert cell.differing == (None if packed else 0)
        assert cell.detections > 50
        assert (len(cell.seconds["ours"]), len(cell.seconds["beside"])) == (2, 3)
        assert min(cell.seconds["ours"] + cell.seconds["beside"] + [cell.text_seconds]) > 0
        assert cell.usual_captions == (1 if cell.num_classes == 7 else 5)
        assert cell.usual_run == (1 if cell.num_classes == 7 else 3)
        assert (cell.captions < cell.usual_captions) == (packed and cell.num_classes == 200)
        assert (cell.model, cell.beside) == ("GLIP", "usual way")
    assert "200 classes: GLIP, late fusion" in told


def test_a_difference_is_seen(cfg, monkeypatch):
    usual = vocabulary_glip.detect_usually
    monkeypatch.setattr(vocabulary_glip, "detect_usually", lambda m, i, p: usual(m, i.flip(2), p))
    cells = measured(cfg, classes=[7], repeats=1)
    assert [cell.differing is None or cell.differing > 10 for cell in cells] == [True] * 3
    assert cells[0].differing is not None


def test_the_usual_way_runs_the_whole_model_on_every_caption(cfg):
    model = vocabulary_glip.glip_of_random_weights(cfg, fusion=True)
    prompts = model.prompts.for_vocabulary(vocabulary_ways.class_names(90), 40)
    calls = {"backbone": [], "text_backbone": [], "head": []}
    for name, shapes in calls.items():
        getattr(model, name).register_forward_pre_hook(
            lambda _, inputs, shapes=shapes: shapes.append(inputs)
        )
    found = vocabulary_glip.detect_usually(model, torch.zeros(3, *SIZE), prompts)
    assert [len(shapes) for shapes in calls.values()] == [3, 3, 3]
    assert [tokens.ids.shape for (tokens,) in calls["text_backbone"]] == [(1, 256)] * 3
    assert [tokens.mask.sum() < 256 for (tokens,) in calls["text_backbone"]] == [True] * 3
    assert found.pred_classes.max() > 80


def test_the_seconds_of_a_few_captions_stand_for_all(cfg, monkeypatch):
    timed = vocabulary_ways._timed
    monkeypatch.setattr(vocabulary_ways, "_timed", lambda *words: (timed(*words)[0], 3.0))
    cell = measured(cfg, classes=[200], repeats=1)[0]
    assert cell.seconds == {"ours": [3.0], "beside": [3.0 * 5 / 3] * 2}
    assert cell.median("beside") == 5 and cell.ratio == 5 / 3
    cell = measured(cfg, classes=[200], repeats=1, full=True)[0]
    assert cell.seconds["beside"] == [3.0] * 2 and cell.usual_run == 5


def test_deep_fusion_with_many_names_is_left_out_unless_asked_for(cfg, monkeypatch):
    monkeypatch.setattr(vocabulary_glip, "MOST_WITH_DEEP_FUSION", 50)
    cells = measured(cfg, classes=[50, 51], repeats=1)
    left_out = [(cell.num_classes, cell.way) for cell in cells if cell.left_out]
    assert left_out == [(51, "same captions"), (51, "packed captions")]
    assert [cell.ratio is None for cell in cells] == [cell.left_out for cell in cells]
    cells = measured(cfg, classes=[51], repeats=1, full=True)
    assert len(cells) == 3 and all(cell.seconds["ours"] for cell in cells)


class Sides:
    """Ours and the other side, of seconds that are known; what ran, in order."""

    def __init__(self, monkeypatch, ours, beside):
        self.seconds = {"ours": iter(ours), "beside": iter(beside)}
        self.ran = []
        monkeypatch.setattr(vocabulary_ways, "_timed", lambda run, _: run())
        monkeypatch.setattr(vocabulary_ways, "peak_memory", lambda run, _: run())

    def run(self, side):
        self.ran.append(side)
        found = Instances(SIZE, scores=torch.zeros(4))
        return [{"instances": found}], next(self.seconds[side])

    def measure(self, repeats):
        text = torch.nn.Identity()
        way = Way(
            "GLIP", "a way", "the other", encode=lambda: text(1), text=text,
            detect=lambda: self.run("ours"), detect_beside=lambda: self.run("beside"),
        )  # fmt: skip
        return vocabulary_ways.measure_way(way, 5, repeats, torch.device("cpu"))


def test_each_run_of_ours_is_between_two_of_the_other_side(monkeypatch):
    sides = Sides(monkeypatch, [9, 1, 2, 4], [9, 2, 4, 8, 16])  # gets slower and slower
    cell = sides.measure(repeats=3)
    assert sides.ran == ["beside", "ours"] + ["beside", "ours"] * 3 + ["beside"]
    assert cell.seconds == {"ours": [1, 2, 4], "beside": [2, 4, 8, 16]}
    assert cell.ratio == 3 and cell.median("beside") / cell.median("ours") == 3
    assert cell.detections == 4 and cell.differing is None


@pytest.mark.parametrize(
    ("ours", "beside", "expected"),
    [
        # the first run of ours took too long: it counts, between the other's first and one more
        ([30], [5, 7], {"ours": [30], "beside": [5, 7]}),
        # the other's first run took too long: it is the one before
        ([1, 2, 2], [30, 31, 32], {"ours": [2], "beside": [30, 31]}),
        # together 20 seconds are enough of any side
        ([1, 12, 12, 12], [1] * 5, {"ours": [12, 12], "beside": [1] * 3}),
        ([1] * 5, [1, 12, 12, 12], {"ours": [1], "beside": [12, 12]}),
    ],
)
def test_what_takes_long_is_repeated_less(monkeypatch, ours, beside, expected):
    assert Sides(monkeypatch, ours, beside).measure(repeats=4).seconds == expected


def test_the_median_ratio_is_of_runs_and_not_of_medians():
    seconds = {"ours": [1.0, 10.0, 3.0], "beside": [2.0, 2.0, 18.0, 12.0]}
    cell = Cell(5, "GLIP", "a way", "the other", seconds=seconds)
    assert cell.ratio == 2.0  # of 2, 1 and 5; the medians' is 10 / 3
    assert cell.median("ours") == 3 and cell.median("beside") == 7


def test_detclip_is_measured_beside_itself_with_80_names(cfg, detclip_cfg):
    cells = measured(detclip_cfg, cfg, classes=[7, 90], repeats=1)
    assert [cell.model for cell in cells] == ["DetCLIP", "GLIP", "GLIP", "GLIP"] * 2
    for cell in (cells[0], cells[4]):
        assert (cell.way, cell.beside) == ("parallel concepts", "80 names")
        assert cell.captions is cell.usual_captions is cell.differing is None
        assert (len(cell.seconds["ours"]), len(cell.seconds["beside"])) == (1, 2)
        assert cell.text_seconds > 0
    assert 10 < cells[0].detections < cells[4].detections


def test_detclip_encodes_names_once_and_has_the_same_weights_on_both_sides(detclip_cfg):
    subject = DetCLIPSubject(detclip_cfg)
    image = torch.rand(3, *SIZE) * 255
    names = vocabulary_ways.class_names(300)
    (way,) = subject.ways(image, names)
    texts = []
    for model in (subject.model, subject.few):
        model.text.register_forward_pre_hook(lambda _, inputs: texts.extend(inputs[0]))
    way.encode()
    assert len(texts) == 300 and way.text is subject.model.text
    found, few = way.detect()[0]["instances"], way.detect_beside()[0]["instances"]
    assert len(texts) == 300  # encoded already, on both sides
    assert len(subject.model.vocabulary) == 300 and len(subject.few.vocabulary) == 80
    assert found.pred_classes.max() >= 80 > few.pred_classes.max()
    threshold = subject.model.detections.score_threshold
    assert threshold == subject.few.detections.score_threshold
    weights = subject.few.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in subject.model.state_dict().items())
    (way,) = subject.ways(image, names[:80])  # now both sides are one and the same
    found, few = way.detect()[0]["instances"], way.detect_beside()[0]["instances"]
    assert torch.equal(found.scores, few.scores) and torch.equal(
        found.pred_boxes.tensor, few.pred_boxes.tensor
    )


def test_the_threshold_is_what_500_pairs_reach():
    scores = torch.rand(1000, 3)
    threshold = vocabulary_ways.threshold_for(scores)
    assert int((scores >= threshold).sum()) == 500
    assert vocabulary_ways.threshold_for(torch.tensor([[0.3], [0.2]])) == pytest.approx(0.2)


def detections(*rows):
    """Of (x of the box, score, class)."""
    found = Instances(SIZE)
    x, scores, classes = torch.tensor(rows, dtype=torch.float32).reshape(-1, 3).T
    found.pred_boxes = Boxes(torch.stack([x, x, x + 9, x + 9], dim=1))
    found.scores, found.pred_classes = scores, classes.long()
    return found


def test_differing_counts_what_the_other_lacks():
    one = detections((1, 0.5, 3), (2, 0.4, 4000))
    assert vocabulary_glip.differing(one, detections((2.01, 0.40001, 4000), (1, 0.5, 3))) == 0
    assert vocabulary_glip.differing(one, detections((1, 0.5, 3))) == 1
    assert vocabulary_glip.differing(one, detections((1, 0.5, 3), (2, 0.4, 4001))) == 2
    assert vocabulary_glip.differing(one, detections((1, 0.5, 3), (2.3, 0.4, 4000))) == 2
    assert vocabulary_glip.differing(one, detections((1, 0.51, 3), (2, 0.4, 4000))) == 2
    assert vocabulary_glip.differing(detections(), one) == 2
    assert vocabulary_glip.differing(detections(), detections()) == 0


def test_names_are_of_lvis_and_then_of_imagenet():
    names = vocabulary_ways.class_names(20000)
    assert len({clean_name(name) for name in names}) == 20000
    assert names[:1203] == vocabulary_ways.class_names(1203)
    with pytest.raises(OVDError, match="names for 1000000 classes: ask for fewer"):
        vocabulary_ways.class_names(1_000_000)
    assert vocabulary_ways.class_names(2) == ["aerosol_can", "air_conditioner"]


def test_what_cannot_be_measured_is_refused(cfg):
    for wrong in ([0], [5, -1]):
        with pytest.raises(OVDError, match="have to be 1 or more"):
            measured(cfg, classes=wrong)
    for wrong in ({"repeats": 0}, {"size": (0, 5)}):
        with pytest.raises(OVDError, match="have to be 1 or more"):
            next(bench.measure_vocabulary([cfg], [5], **wrong))
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    with pytest.raises(OVDError, match="META_ARCHITECTURE is GeneralizedRCNN; give the config"):
        measured(cfg, classes=[5])


@pytest.fixture
def speed(cfg, detclip_cfg, tmp_path, capsys):
    files = []
    for name, one in (("small", cfg), ("concepts", detclip_cfg)):
        file = tmp_path / f"{name}.yaml"
        file.write_text(one.dump())
        files += ["--config-file", str(file)]

    def run(*words, code=0):
        with pytest.raises(SystemExit) as exit_info:
            main(["speed", "vocabulary", *files, *words])
        printed = capsys.readouterr()
        assert exit_info.value.code == code, printed.err
        return printed.err if code else printed.out

    return run


def test_json(speed, monkeypatch):
    monkeypatch.setattr(vocabulary_glip, "MOST_WITH_DEEP_FUSION", 130)
    words = ("--classes", "130,131", "--size", "64x96", "--repeats", "1", "--json")
    facts = json.loads(speed(*words))
    assert facts["size"] == [64, 96] and facts["device"] == "cpu" and len(facts["configs"]) == 2
    same, packed, late, detclip, *more = facts["cells"]
    assert (same["usual_run"], same["usual_captions"], same["captions"]) == (2, 4, 4)
    assert same["differing"] == late["differing"] == 0 and packed["differing"] is None
    for cell in (same, detclip):
        beside = cell["seconds"]["beside"]
        assert cell["ratio"] == pytest.approx(sum(beside) / 2 / cell["seconds"]["ours"][0])
    assert [cell["left_out"] for cell in more] == [True, True, False, False]
    assert more[0]["ratio"] is None and more[0]["seconds"] == {}


def test_rows_are_printed_as_they_come(speed, monkeypatch):
    monkeypatch.setattr(vocabulary_glip, "MOST_WITH_DEEP_FUSION", 129)
    seen = []
    measure = bench.measure_way

    def measured_way(way, *words):
        seen.append((way.name, sys.stdout.getvalue()))
        return measure(way, *words)

    monkeypatch.setattr(bench, "measure_way", measured_way)
    lines = speed("--classes", "130", "--size", "64x96", "--repeats", "1").splitlines()
    assert "small.yaml" in lines[0] and "concepts.yaml, random weights, 64x96; cpu" in lines[0]
    cells = [re.split(r"\s{2,}", line.strip()) for line in lines]
    rows = {row[2]: line for row, line in zip(cells, lines) if row[0] == "130"}
    ways = ["same captions", "packed captions", "late fusion", "parallel concepts"]
    assert list(rows) == ways
    late, detclip = rows["late fusion"], rows["parallel concepts"]
    assert " 4 captions, 2 run " in late and "x " in late and late.endswith(" the same")
    assert " 80 names " in detclip and "x " not in detclip and detclip.endswith(" not compared")
    assert len({len(line) for line in lines if line.endswith((" the same", "compared"))}) == 1
    assert sum(line.rstrip().endswith("left out") for line in lines) == 2
    assert lines[-1].startswith("left out: GLIP with deep fusion beyond 5000 names")
    before = dict(seen)
    assert "late fusion" in before["parallel concepts"]
    assert "late fusion" not in before["late fusion"]


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
