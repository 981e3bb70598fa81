"""Negatives, thresholds of names and synonyms, with every kind of detector and in bad company."""

import functools
import json
import logging
from pathlib import Path

import pytest
import torch
from PIL import Image
from random_models import assert_same, make_pixels
from tiny_detectors import SAVE, spread

from ovd_d2.errors import OVDError
from ovd_d2.inference import OpenVocabPredictor
from ovd_d2.inference.class_rules import LEAST_EXPONENT, class_rules
from ovd_d2.inference.name_thresholds import as_thresholds
from ovd_d2.inference.ruled_detector import (
    ROOM,
    check_rules,
    least_of_a_word,
    shares_probability,
)
from ovd_d2.language import Vocabulary
from ovd_d2.modeling.detection_choice import detection_choice

ROOT = Path(__file__).resolve().parents[2]
PICTURE = Image.fromarray(make_pixels(120, 160))
KINDS = ["roi_heads", "glip", "detclip_boxes", "grounding-dino"]
NAMES, NEGATIVES = ("cat", "red mug", "dog"), ("zebra crossing", "bow", "traffic light")


def one_stage(name, folder):
    """The yaml and random weights of a model of configs/mini."""
    from detectron2.modeling import build_model

    from ovd_d2.config_file import load_config

    group = "GLIP" if name == "glip" else "DETCLIP"
    overrides = {f"{group}.SCORE_THRESH_TEST": "0.1", "TIMM.WEIGHTS": "", "DEVICE": "cpu",
                 "OPEN_VOCAB.VOCABULARY": "cat, chair"}  # fmt: skip
    words = [word for key, value in overrides.items() for word in (f"MODEL.{key}", value)]
    words += ["INPUT.MIN_SIZE_TEST", "96", "INPUT.MAX_SIZE_TEST", "128"]
    cfg = load_config(str(ROOT / f"configs/mini/{name}.yaml"), words)
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder / "config.yaml", folder / "model_final.pth"


@pytest.fixture(scope="module", params=KINDS)
def make(request, config, checkpoint, tmp_path_factory):
    """Makes a predictor of the kind, with topk and a score threshold; equal ones are the same."""
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    if kind == "roi_heads":
        files = config, checkpoint
    elif kind in SAVE:
        torch.manual_seed(0)
        model = SAVE[kind](folder)
        spread(model)
        model.save_pretrained(folder)
    else:
        files = one_stage(kind, folder)

    @functools.cache
    def make(**options):
        if kind in SAVE:
            return OpenVocabPredictor.from_pretrained(f"hf:{folder}", device="cpu", **options)
        return OpenVocabPredictor(*files, device="cpu", **options)

    return make


def ranked(make):
    """The names, those of which the random model finds most first."""
    predictor = make(topk=2000)
    predictor.set_vocabulary(NAMES + NEGATIVES)
    found = predictor.predict(PICTURE)
    best = [found.scores[found.pred_classes == k].sum() for k in range(len(NAMES + NEGATIVES))]
    order = torch.tensor(best).argsort(descending=True).tolist()
    return [(NAMES + NEGATIVES)[k] for k in order]


def middle(predictor):
    """The median score of what ``predictor`` finds of the names alone."""
    predictor.set_vocabulary(NAMES, alone=True)
    return float(predictor.predict(PICTURE).scores.median())


def test_negatives_compete_and_are_not_reported(make):
    order = ranked(make)
    names, negatives = order[::2], order[1::2]
    wide = make(topk=ROOM * 25)
    wide.set_vocabulary(names + negatives)
    of_all = wide.predict(PICTURE)
    overlap = detection_choice(wide.model).nms_threshold
    rules = class_rules(Vocabulary.from_names(names), Vocabulary.from_names(negatives))
    wanted = rules.apply(of_all, overlap if overlap < 1 else 0.5)[:25]
    predictor = make(topk=25)
    predictor.set_vocabulary(names, negatives=", ".join(negatives))
    assert predictor.vocabulary.names == tuple(names)
    got = predictor.predict(PICTURE)
    assert_same(got, wanted, tolerance=1e-5)
    assert len(got) > 0 and (of_all.pred_classes >= len(names)).any()
    predictor.set_vocabulary(names)  # the model's limits are its own again
    plain = make(topk=25, batch_size=1)
    plain.set_vocabulary(names)
    assert predictor.rules is None or not predictor.rules.is_asked
    assert_same(predictor.predict(PICTURE), plain.predict(PICTURE), tolerance=1e-5)


def test_thresholds_of_names_above_and_below_the_general_one(make):
    low = make(score_threshold=0.0, topk=1000)
    cut = middle(low)
    low.set_vocabulary(NAMES, thresholds=dict.fromkeys(NAMES, 0.0), alone=True)
    everything = low.predict(PICTURE)
    predictor = make(score_threshold=cut, topk=1000)
    predictor.set_vocabulary(NAMES, thresholds={"cat": 1.0, "Red_Mug": cut / 2}, alone=True)
    least = torch.tensor([1.0, cut / 2, cut])
    wanted = everything[everything.scores >= least[everything.pred_classes]]
    got = predictor.predict(PICTURE)
    assert_same(got, wanted, tolerance=1e-5)
    between = (got.scores < cut) & (got.pred_classes == 1)
    assert between.any() and not (got.pred_classes == 0).any()


def test_words_of_a_class_are_one_detection(make):
    predictor = make(score_threshold=0.0, topk=50)
    words = {"names": ["cat", "red mug"], "synonyms": [["cat", "dog"], ["red mug", "bow"]]}
    predictor.set_vocabulary(Vocabulary(**{k: tuple(v) for k, v in words.items()}), synonyms="max")
    assert predictor.rules.scored.names == ("cat", "dog", "red mug", "bow")
    found = predictor.predict(PICTURE)
    assert predictor.vocabulary.names == ("cat", "red mug")
    assert 0 < len(found) <= 50 and set(found.pred_classes.tolist()) <= {0, 1}
    assert (found.scores.diff() <= 0).all() and found.scores.max() <= 1
    softmax = shares_probability(predictor.model)  # there words that share a probability add up
    predictor.set_vocabulary(["cat", "dog", "red mug", "bow"], alone=True)
    best = predictor.predict(PICTURE).scores[0]
    assert found.scores[0] > best + 0.05 if softmax else float(found.scores[0]) == float(best)


@pytest.mark.parametrize("exponents", [[1.0, 1.0], [0.5, 0.5], [1.0, 3.0], [0.0, 1.0]])
def test_what_a_word_scores_at_least(exponents):
    """No words that reach the threshold together all score less, whichever box is kept."""
    least = least_of_a_word(0.4, 2, torch.tensor(exponents))
    used = [max(e, LEAST_EXPONENT) for e in exponents]
    for kept in used:
        together = sum((0.999 * least) ** (1 / e) for e in used) ** kept
        assert together < 0.4
    assert least_of_a_word(0.4, 2, None) == 0.4


def test_many_negatives_leave_room_or_say_so(make, caplog):
    """Two places: what a name has anywhere is found, or a warning is given."""
    order = ranked(make)
    names, negatives = order[:3], order[3:]
    wide = make(topk=5000, score_threshold=0.0)
    wide.set_vocabulary(names, negatives=negatives)
    wanted = wide.predict(PICTURE)
    assert len(wanted) > 0
    predictor = make(topk=2, score_threshold=0.0)
    predictor.set_vocabulary(names, negatives=negatives)
    with caplog.at_level(logging.WARNING):
        got = predictor.predict(PICTURE)
    said = [r for r in caplog.records if "detections that the model gives" in r.getMessage()]
    assert len(got) == min(2, len(wanted)) or said
    assert_same(got, wanted[: len(got)], tolerance=1e-5)


def test_full_places_are_spoken_about_and_enough_room_is_not(config, checkpoint, caplog):
    def warned(**options):
        caplog.clear()
        predictor = OpenVocabPredictor(config, checkpoint, device="cpu", **options)
        predictor.set_vocabulary("cat", negatives=[f"cat {k}" for k in range(60)])
        with caplog.at_level(logging.WARNING):
            found = predictor.predict(PICTURE)
        return len(found), "were used up" in caplog.text

    found, said = warned(topk=2, score_threshold=0.0)
    assert found < 2 and said
    assert warned(topk=2000, score_threshold=0.0)[1] is False


def test_a_name_in_both_lists_leaves_everything_as_it_was(make):
    predictor = make()
    predictor.set_vocabulary(NAMES, negatives="bow")
    rules = predictor.rules
    for wrong in (
        {"negatives": "bow, Dog"},
        {"negatives": "bow, , dog"},
        {"thresholds": {"cat": 0.3, "wolf": 0.2}},
        {"synonyms": "best"},
    ):
        with pytest.raises(OVDError, match="Dog|number 2 is empty|wolf|best"):
            predictor.set_vocabulary(NAMES, **wrong)
        assert predictor.rules is rules and predictor.vocabulary.names == NAMES


def test_typed_negatives_know_what_the_model_knows(config, checkpoint):
    """A negative that is a synonym of a class that is looked for does not bring the class along."""
    predictor = OpenVocabPredictor(config, checkpoint, device="cpu")
    trained = Vocabulary(
        names=("mug", "dog"), synonyms=(("mug", "cup", "beaker"), ("dog", "pup")),
        is_novel=(False, True),
    )  # fmt: skip
    predictor._trained = trained
    predictor.set_vocabulary("mug", negatives="cup, pup")
    assert predictor.rules.scored.synonyms == (("mug", "beaker"), ("cup",), ("dog", "pup"))
    assert predictor.rules.scored.is_novel == (False, False, True)
    assert predictor.rules.facts["negatives"] == ["cup", "pup"]


def test_attributes_are_refused_and_go_on_afterwards(config, checkpoint):
    predictor = OpenVocabPredictor(config, checkpoint, device="cpu")
    predictor.set_vocabulary("cat, dog", negatives="cup")
    with pytest.raises(OVDError, match="Attributes go with neither negatives, thresholds"):
        predictor.set_attributes("red")
    predictor.set_vocabulary("cat, dog")
    predictor.set_attributes("red")
    assert predictor.vocabulary.names == ("red cat", "red dog")
    predictor.set_vocabulary("cat, dog", negatives="cup")
    assert predictor.vocabulary.names == ("cat", "dog")
    assert set(predictor.predict(PICTURE).pred_classes.tolist()) <= {0, 1}


def test_label_maps_know_words_and_refuse_the_others(label_map_model):
    predictor = OpenVocabPredictor.from_pretrained(label_map_model, device="cpu")
    words = Vocabulary(names=("sea", "red mug"), synonyms=(("sea", "tree"), ("red mug",)))
    predictor.set_vocabulary("sea, tree, red mug")
    maps = predictor.predict(PICTURE)
    predictor.set_vocabulary(words, synonyms="max")
    best = torch.stack([maps[:2].amax(dim=0), maps[2]])
    torch.testing.assert_close(predictor.predict(PICTURE), best)
    for wrong in ({"negatives": "wall"}, {"thresholds": {"sea": 0.2}}):
        with pytest.raises(OVDError, match="LettersOfPixels does not say how it chooses boxes"):
            predictor.set_vocabulary(words, **wrong)


def test_thresholds_in_files(tmp_path):
    names = ("cat", "red mug")

    def read(content):
        path = tmp_path / "t.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return as_thresholds(path, names)

    assert read({"Cat": 0.3}) == {"cat": 0.3}
    calibrated = {"thresholds": {"cat": 0.25, "wolf": 0.1}, "dataset": "x"}
    assert read(calibrated) == {"cat": 0.25}
    for content, said in (
        ({"cat": 0.3, "wolf": 0.1, "fox": 0.1}, r"t\.json: 'wolf', 'fox' is not among the 2 names"),
        ({"thresholds": {"wolf": 0.1}}, r"'wolf' is not among the 2 names"),
        ({"cat": 1.5}, r"t\.json: 'cat': .* must be in 0\.\.1"),
        ({"cat": "high"}, r"'cat': The score threshold is 'high'"),
        ({"cat": True}, r"'cat'"),
        ([0.3], r"t\.json: give a mapping"),
        ("{", r"t\.json is no valid json"),
    ):
        with pytest.raises(OVDError, match=said):
            read(content)
    with pytest.raises(OVDError, match=r"Cannot read thresholds .*none\.json: No such file"):
        as_thresholds(tmp_path / "none.json", names)
    with pytest.raises(OVDError, match="thresholds: give a mapping"):
        as_thresholds(0.3, names)


def test_what_is_wrong_for_any_model_is_known_without_one():
    check_rules("cat", negatives="dog", thresholds={"cat": 0.1}, synonyms="max")
    check_rules(negatives="dog")
    for words, said in (
        ({"vocabulary": "cat", "negatives": "cat"}, "negatives has 'cat'"),
        ({"vocabulary": "cat", "thresholds": {"dog": 0.1}}, "'dog' is not among"),
        ({"synonyms": "sum"}, "synonyms is 'sum'"),
        ({"negatives": "no_such_file.txt"}, "no_such_file"),
    ):
        with pytest.raises(OVDError, match=said):
            check_rules(**words)
