import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from random_models import make_pixels
from small_uploads import LIMITS, encoded, png

from ovd_d2.errors import OVDError
from ovd_d2.inference.predictor import OpenVocabPredictor
from ovd_d2.web.limits import BusyError, TooLargeError
from ovd_d2.web.served_model import Example, ServedModel, read_upload


def test_finds_what_the_predictor_finds(served, exported):
    answer = served["random"].detect(png(), "dog, red mug", 0.05, topk=7)
    predictor = OpenVocabPredictor.from_pretrained(
        exported, device="cpu", score_threshold=0.05, input_format="RGB", vocabulary="dog, red mug"
    )
    found = predictor.predict(make_pixels(96, 120))[:7]
    assert len(found) == 7
    assert answer.names == ("dog", "red mug")
    assert [k for k, *_ in answer.rows()] == found.pred_classes.tolist()
    np.testing.assert_allclose([row[2] for row in answer.rows()], found.scores, rtol=1e-5)
    assert len(answer.coco()["annotations"]) == 7
    assert "segmentation" in answer.coco()["annotations"][0]
    assert not np.array_equal(answer.drawn(), served["random"].detect(png(), "dog", 1.0).drawn())


def test_threshold_and_count(served):
    everything = served["random"].detect(png(), "dog, red mug", 0.0).rows()
    middle = everything[len(everything) // 2][2]
    kept = served["random"].detect(png(), "dog, red mug", middle).rows()
    assert kept == [row for row in everything if row[2] >= middle]
    assert 0 < len(kept) < len(everything)


def test_names_of_one_request_are_gone_in_the_next(served):
    trained = served["random"].detect(png()).names
    assert served["random"].detect(png(), "zebra").names == ("zebra",)
    assert served["random"].detect(png()).names == trained == ("cat", "red mug", "traffic light")


def test_two_users_never_see_each_others_names(served):
    model, wanted = served["random"], {"dog": ("dog",), "a, b": ("a", "b"), "": None}
    wanted[""] = model.detect(png()).names
    rows = {names: model.detect(png(), names, 0.0).rows() for names in wanted}
    start = threading.Barrier(2)

    def user(turn):
        start.wait()
        answers = []
        for step in range(9):
            names = list(wanted)[(step + turn) % 3]
            answers.append((names, model.detect(png(), names, 0.0)))
        return answers

    with ThreadPoolExecutor(2) as pool:
        answers = [answer for turn in pool.map(user, range(2)) for answer in turn]
    assert len(answers) == 18
    for names, answer in answers:
        assert answer.names == wanted[names]
        assert answer.rows() == rows[names]


def test_too_many_waiting(served, monkeypatch):
    model, inside, leave = served["random"], threading.Event(), threading.Event()
    look_for = model._look_for

    def slow(*wanted):
        inside.set()
        assert leave.wait(30)
        look_for(*wanted)

    monkeypatch.setattr(model, "_look_for", slow)
    with ThreadPoolExecutor(1 + LIMITS.waiting) as pool:
        running = [pool.submit(model.detect, png(), "dog")]
        assert inside.wait(30)
        running += [pool.submit(model.detect, png(), "dog") for _ in range(LIMITS.waiting)]
        while model._places._value:
            pass
        with pytest.raises(BusyError, match="2 requests wait"):
            model.detect(png(), "dog")
        leave.set()
        assert [future.result().names for future in running] == [("dog",)] * 3
    monkeypatch.undo()
    assert model.detect(png(), "dog").names == ("dog",)


def test_memory_that_is_not_there_is_said(served, monkeypatch):
    def out_of_memory(*_):
        raise MemoryError

    monkeypatch.setattr(served["random"], "_look_for", out_of_memory)
    with pytest.raises(BusyError, match="not enough memory"):
        served["random"].detect(png(), "dog")


def test_by_example(served):
    example = Example("my thing", png(seed=3), [(10, 20, 60, 70)])
    answer = served["random"].detect(png(), "dog", 0.0, example=example)
    assert answer.names == ("dog", "my thing")
    assert {k for k, *_ in answer.rows()} == {0, 1}
    assert served["random"].detect(png(), "dog").names == ("dog",)


def test_examples_that_were_turned(served):
    upright, turned = make_pixels(96, 120, 3), np.rot90(make_pixels(96, 120, 3))
    seen = served["random"]._seen
    ((pixels, _),) = seen(
        Example("x", encoded(np.ascontiguousarray(turned)), [(0, 0, 9, 9)], turns=1)
    )
    assert np.array_equal(pixels, upright)
    ((pixels, box),) = seen(Example("x", encoded(upright), [(0, 0, 9, 9)]))
    assert np.array_equal(pixels, upright) and box == (0, 0, 9, 9)


def test_an_example_that_fails_changes_no_later_answer(served):
    served["random"].detect(png(), "dog")
    outside = Example("x", png(), [(500, 500, 600, 600)])
    with pytest.raises(OVDError, match="not inside"):
        served["random"].detect(png(), "cow", example=outside)
    assert served["random"].detect(png(), "dog").names == ("dog",)


def test_models_that_read_no_captions_say_so(served):
    assert not served["random"].reads_captions
    with pytest.raises(OVDError, match="reads no captions"):
        served["random"].ground(png(), "a cat")


def test_label_maps(label_map_model):
    model = ServedModel.load("maps", str(label_map_model), LIMITS, "cpu")
    answer = model.detect(png(), "dog, red mug")
    assert answer.rows() == [] and sum(answer.shares().values()) == pytest.approx(1)
    assert answer.drawn().shape[2] == 3
    assert {a["category_id"] for a in answer.coco()["annotations"]} <= {1, 2}
    model.limits = replace(LIMITS, label_map=2 * 96 * 120 - 1)
    with pytest.raises(TooLargeError, match="2 names in 96 x 120 pixels are too many for maps"):
        model.detect(png(), "dog, red mug")


def test_uploads_are_measured_before_they_are_decoded():
    with pytest.raises(TooLargeError, match="1500 x 1000 pixels, more than 1000000"):
        read_upload(encoded(np.zeros((1000, 1500, 3), np.uint8)), LIMITS)
    with pytest.raises(TooLargeError, match="more than 1048576 bytes"):
        read_upload(b"x" * (LIMITS.bytes + 1), LIMITS)
    with pytest.raises(OVDError, match="it is empty"):
        read_upload(b"", LIMITS)


def test_names_are_not_kept_on_disk(served, text_cache_folder):
    before = set(text_cache_folder.rglob("*"))
    served["random"].detect(png(), "a name of nobody else")
    assert set(text_cache_folder.rglob("*")) == before
