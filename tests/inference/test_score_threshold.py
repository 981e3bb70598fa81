"""The default score threshold: counted, chosen, kept, used; and what it is worth on mini."""

import json
import re

import pytest
from random_models import make_pixels

from ovd_d2.errors import OVDError
from ovd_d2.inference import OpenVocabPredictor
from ovd_d2.inference.export import export_model
from ovd_d2.inference.model_folders import FACTS, MODELS, model_folder, read_facts
from ovd_d2.inference.score_threshold import (
    Matches,
    choose_score_threshold,
    match_data_set,
)

PIXELS = make_pixels(120, 160)


def matches():
    """Novel classes score low: four of five objects between 0.05 and 0.1, amid wrong ones."""
    base = [(0.9, True), (0.8, True), (0.6, True), (0.5, False), (0.3, True), (0.02, False)]
    novel = [(0.095, True), (0.085, True), (0.075, True), (0.065, True), (0.04, False)]
    novel += [(0.03, False)] * 6
    rows = [(*row, False) for row in base] + [(*row, True) for row in novel]
    scores, right, flags = (list(column) for column in zip(*rows))
    return Matches(scores, right, flags, {"base": 5, "novel": 5})


def test_counts_and_the_best_threshold():
    found = matches()
    assert found.counts(0.3) == {
        "base": {"found": 3, "of": 5, "detections": 4},  # a score equal to it is dropped
        "novel": {"found": 0, "of": 5, "detections": 0},
    }
    assert found.quality(0.3) == 0.0
    best = found.best_threshold()
    assert best == 0.04
    f1 = [2 * 4 / (5 + 5), 2 * 4 / (5 + 4)]
    assert found.quality(best) == pytest.approx(2 / (1 / f1[0] + 1 / f1[1]))


def test_a_data_set_without_novel_classes_goes_by_what_it_has():
    found = matches()
    found.objects["novel"] = 0
    assert found.best_threshold() == 0.02  # all right ones, without the wrong one at 0.02


def test_the_model_s_own_threshold_is_used_unless_one_is_given(
    config, checkpoint, exported, tmp_path
):
    everything = OpenVocabPredictor.from_pretrained(exported, device="cpu").predict(PIXELS)
    cut = round(float(everything.scores[len(everything) // 2]), 3)
    facts = export_model(checkpoint, config, tmp_path / "out", score_threshold=str(cut))
    assert facts["score_threshold"] == cut
    own = OpenVocabPredictor.from_pretrained(tmp_path / "out", device="cpu")
    assert own.score_threshold == cut and own.facts == facts
    assert 0 < len(own.predict(PIXELS)) == int((everything.scores > cut).sum())
    given = OpenVocabPredictor.from_pretrained(tmp_path / "out", device="cpu", score_threshold=0)
    assert len(given.predict(PIXELS)) >= len(everything)


@pytest.mark.parametrize("wanted", ["2", "nan", "-0.1", "no_such_data_set"])
def test_a_bad_threshold_exports_nothing(config, checkpoint, tmp_path, wanted):
    with pytest.raises(OVDError, match=re.escape(wanted)):
        export_model(checkpoint, config, tmp_path / "deep/out", score_threshold=wanted)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_a_bad_threshold_is_named(exported, tmp_path):
    facts = {**read_facts(exported), "score_threshold": "high"}
    (tmp_path / FACTS).write_text(json.dumps(facts))
    with pytest.raises(OVDError, match=r"facts\.json .*score_threshold"):
        read_facts(tmp_path)


def test_notes_do_not_replace_what_was_measured(config, checkpoint, tmp_path):
    notes = {"learned_from": "noise", "sha256": "0"}
    facts = export_model(checkpoint, config, tmp_path / "out", notes=notes)
    assert facts["learned_from"] == "noise" and len(facts["sha256"]) == 64
    assert "score_threshold" not in facts


def test_choosing_needs_all_scores(config, checkpoint):
    strict = OpenVocabPredictor(config, checkpoint, device="cpu", score_threshold=0.3)
    with pytest.raises(OVDError, match="score_threshold of the predictor is 0.3"):
        choose_score_threshold(strict, "mini_v1_val")


def test_the_shipped_model_says_what_its_default_was_chosen_on():
    facts = read_facts(model_folder("mini"))
    chosen = facts["score_threshold_chosen"]
    assert chosen["dataset"] == "mini_v1_val"
    assert f1(chosen["base"]) > 0.5 and f1(chosen["novel"]) > 0.36
    assert "drawings" in facts["learned_from"]
    assert (MODELS / "mini" / FACTS).is_file()


@pytest.mark.slow
def test_the_shipped_model_finds_base_and_novel_objects_by_default(mini_root):
    """Its own threshold, on images it was not chosen on, by the stored vocabulary and by names that
    a user types; and near the best on some that it was chosen on."""
    from ovd_d2 import register

    register()
    predictor = OpenVocabPredictor.from_pretrained("mini", device="cpu", score_threshold=0.01)
    own = read_facts(model_folder("mini"))["score_threshold"]
    stored = match_data_set(predictor, "mini_v1_test", 60)
    typed = match_data_set(predictor, "mini_v1_test", 60, by_name=True)
    assert typed.counts(own) == stored.counts(own)
    assert f1(stored.counts(own)["base"]) > 0.45 and f1(stored.counts(own)["novel"]) > 0.3
    seen = match_data_set(predictor, "mini_v1_val", 60)
    assert seen.quality(own) > 0.95 * seen.quality(seen.best_threshold())


def f1(count):
    return 2 * count["found"] / (count["of"] + count["detections"])
