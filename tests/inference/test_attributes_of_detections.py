"""Names times attributes on a detector: same boxes, finer names, scores that multiply."""

import pytest
import torch
from random_models import make_pixels

from ovd_d2.errors import OVDError
from ovd_d2.inference import OpenVocabPredictor

PIXELS = make_pixels(120, 160)
WORDS = ["red", "dark blue", "striped"]


@pytest.fixture
def predictor(config, checkpoint):
    return OpenVocabPredictor(config, checkpoint, device="cpu")


def by_box(instances):
    rows = zip(instances.pred_boxes.tensor, instances.pred_classes, instances.scores)
    return sorted((tuple(box.tolist()), int(k), float(score)) for box, k, score in rows)


def test_detections_are_those_of_the_names_with_an_attribute_each(predictor):
    names = predictor.vocabulary.names
    plain = by_box(predictor.predict(PIXELS))
    predictor.set_attributes(WORDS)
    assert predictor.vocabulary.names == tuple(f"{w} {name}" for name in names for w in WORDS)
    found = predictor.predict(PIXELS)
    assert (found.scores.diff() <= 0).all()
    assert found.pred_masks.shape == (len(found), 120, 160)
    fine = by_box(found)
    assert len(fine) == len(plain) > 0
    for (box, k, score), (fine_box, fine_k, fine_score) in zip(plain, fine):
        assert fine_box == pytest.approx(box, abs=1e-4)
        assert fine_k // len(WORDS) == k
        assert score / len(WORDS) - 1e-6 <= fine_score <= score + 1e-6  # the best of three


def test_the_attribute_is_the_one_nearest_to_the_region(predictor):
    """An attribute whose embedding is the region's own is always the best one."""
    seen = {}
    heads = predictor.model.roi_heads
    embed = heads.region_embeddings

    def spy(features, boxes):
        seen["embeddings"] = embed(features, boxes)
        return seen["embeddings"]

    predictor.set_attributes(WORDS)
    heads.region_embeddings = spy
    predictor.predict(PIXELS)
    towards = seen["embeddings"].mean(dim=0)
    assert torch.allclose(seen["embeddings"].norm(dim=1), torch.ones(len(seen["embeddings"])))
    predictor._attributes._embeddings = torch.stack([-towards, towards, -towards])
    found = predictor.predict(PIXELS)
    assert set((found.pred_classes % 3).tolist()) == {1}


def test_one_attribute_keeps_scores_and_a_new_vocabulary_ends_it(predictor):
    plain = predictor.predict(PIXELS)
    predictor.set_attributes("red")
    red = predictor.predict(PIXELS)
    torch.testing.assert_close(red.scores, plain.scores)
    predictor.set_vocabulary("cat, red mug, traffic light")
    assert predictor.vocabulary.names[0] == "cat"
    torch.testing.assert_close(predictor.predict(PIXELS).scores, plain.scores)


def test_no_detection_and_batches(predictor, config, checkpoint):
    blind = OpenVocabPredictor(config, checkpoint, device="cpu", score_threshold=1.0)
    blind.set_attributes(WORDS)
    assert len(blind.predict(PIXELS)) == 0
    predictor.set_attributes(WORDS)
    pictures = [PIXELS, make_pixels(120, 160, 1), make_pixels(90, 160, 2)]
    together = predictor.predict(pictures)
    for picture, found in zip(pictures, together):
        torch.testing.assert_close(found.scores, predictor.predict(picture).scores, atol=1e-3,
                                   rtol=0)  # fmt: skip


def test_a_model_says_how_far_its_attributes_go(predictor, caplog):
    predictor.facts = {"attributes": "no better than guesses."}
    predictor.set_attributes("red")
    assert "no better than guesses" in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "empty"),
        (" , ", "empty"),
        (["red", "red"], "distinct"),
        ([], "empty"),
        (None, "attributes is None"),
        (3, "attributes is 3"),
        ([3], "attributes holds 3"),
        ("red, bl\x07ue", r"attributes holds ' bl\\x07ue'"),
    ],  # fmt: skip
)
def test_bad_attributes_change_nothing(predictor, words, message):
    with pytest.raises(OVDError, match=message):
        predictor.set_attributes(words)
    assert predictor.vocabulary.names[0] == "cat"
