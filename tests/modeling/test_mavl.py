"""What MAVL is asked, and what it answers."""

import pytest
import torch
from small_glip import CAPTION, sample
from small_mavl import small_mavl

from ovd_d2.errors import OVDError
from ovd_d2.language import Vocabulary
from ovd_d2.modeling import get_vocabulary, is_open_vocabulary, set_vocabulary
from ovd_d2.modeling.detection_choice import changed_choice, detection_choice
from ovd_d2.modeling.query_merging import QueryMerging, boxes_in_pixels
from ovd_d2.structures import TokenSpans

QUERIES = ("all objects", "all entities")


@pytest.fixture(scope="module")
def model():
    return small_mavl(queries=QUERIES)


@pytest.fixture(autouse=True)
def objects_of_any_class(model):
    model.set_vocabulary(None)
    model.backbone.calls = 0


def found_by(model, *samples):
    return [one["instances"] for one in model(list(samples))]


def equal(first, second, tolerance=1e-5):
    assert len(first) == len(second) > 0
    torch.testing.assert_close(first.scores, second.scores, atol=tolerance, rtol=0)
    torch.testing.assert_close(first.pred_boxes.tensor, second.pred_boxes.tensor, atol=1e-2, rtol=0)
    assert torch.equal(first.pred_classes, second.pred_classes)


def test_without_a_vocabulary_it_finds_objects_of_any_class(model):
    (found,) = found_by(model, sample())
    assert found.pred_classes.eq(0).all() and len(found) > 3
    assert found.scores.diff().le(0).all() and 0 < found.scores.min() <= found.scores.max() <= 1
    image = model.read_images([sample()["image"]])
    boxes, scores = model.ask(image, QUERIES)
    merged = model.merging(boxes[0], scores[0], (64, 96))
    assert len(merged.scores) >= len(found)
    assert not torch.allclose(scores[0, 0], scores[0, 1])  # the texts matter
    alone = [model.ask(image, [text]) for text in QUERIES]
    torch.testing.assert_close(torch.cat([b for b, _ in alone], dim=1), boxes)
    torch.testing.assert_close(torch.cat([s for _, s in alone], dim=1), scores)


def test_the_image_is_read_once_whatever_is_asked(model):
    names = [f"thing {k}" for k in range(40)]
    model.set_vocabulary(names)
    model.pairs_at_once = 7
    encoded = []
    handle = model.text_backbone.register_forward_hook(lambda *_: encoded.append(1))
    transformed = []
    second = model.transformer.register_forward_hook(lambda *_: transformed.append(1))
    (found,) = found_by(model, sample())
    assert model.backbone.calls == len(transformed) == 1 and len(encoded) == 6
    found_by(model, sample(seed=1))
    assert model.backbone.calls == 2 and len(encoded) == 6  # texts are encoded once
    model.pairs_at_once = 16
    (together,) = found_by(model, sample())
    equal(found, together)
    handle.remove()
    second.remove()


def test_texts_are_encoded_anew_when_weights_change(model):
    (before,) = found_by(model, sample())
    state = {key: value.clone() for key, value in model.state_dict().items()}
    other = {key: value + 0.3 if "text_backbone" in key else value for key, value in state.items()}
    model.load_state_dict(other)
    (changed,) = found_by(model, sample())
    model.load_state_dict(state)
    (after,) = found_by(model, sample())
    equal(before, after)
    assert len(changed) != len(before) or not torch.allclose(changed.scores, before.scores)


def test_each_class_is_asked_for_by_itself(model):
    assert is_open_vocabulary(model) and get_vocabulary(model) is None
    set_vocabulary(model, ["cat", "red_mug"])
    assert get_vocabulary(model).names == ("cat", "red_mug")
    (both,) = found_by(model, sample())
    assert set(both.pred_classes.tolist()) == {0, 1}
    image = model.read_images([sample()["image"]])
    boxes, scores = model.ask(image, ["every cat", "every red mug"])
    alone = model.merging(boxes[0], scores[0], (64, 96), groups=[0, 1])
    assert both.scores.max() == alone.scores.max()
    set_vocabulary(model, "red_mug")
    (one,) = found_by(model, sample())
    mugs = both[both.pred_classes == 1]
    torch.testing.assert_close(one.scores, mugs.scores)
    torch.testing.assert_close(one.pred_boxes.tensor, mugs.pred_boxes.tensor)
    set_vocabulary(model, Vocabulary.from_names([f"name {k}" for k in range(3)]))
    assert len(get_vocabulary(model)) == 3
    with pytest.raises(OVDError, match="no letters left"):
        set_vocabulary(model, ["cat", "___"])
    assert len(get_vocabulary(model)) == 3


def test_phrases_of_a_caption(model):
    (found,) = found_by(model, sample(caption=CAPTION))
    assert set(found.pred_classes.tolist()) <= {0, 1} and len(found) > 1
    image = model.read_images([sample()["image"]])
    tokens = model.text_backbone.tokenizer([CAPTION.caption])
    logits = model.predict_queries(image, model.read_texts(tokens))["pred_logits"]
    words = logits[0].softmax(dim=-1)
    columns = CAPTION.token_map(tokens.offsets[0])
    assert columns.sum(dim=1).tolist() == [1, 2]
    for phrase, of_phrase in enumerate(columns):
        best = words[:, of_phrase.nonzero()[:, 0]].sum(dim=1).max()
        assert found.scores[found.pred_classes == phrase].max().item() == pytest.approx(best.item())
    (none,) = found_by(model, sample(caption=TokenSpans("a cat")))
    assert len(none) == 0
    with pytest.raises(OVDError, match=r"is a str.*needs one whose phrases are marked"):
        found_by(model, sample(caption="a cat"))


def test_what_comes_out_does_not_depend_on_the_batch(model):
    samples = [sample(), sample(96, 64, seed=1), sample(seed=2), sample(70, 101, seed=3)]
    together = found_by(model, *samples)
    for one, found in zip(samples, together):
        equal(found_by(model, one)[0], found)


def test_padding_is_not_seen(model):
    """What stands in the padding of the maps does not matter, nor how much padding there is."""
    sizes, inside = [(8, 12), (4, 6), (2, 3), (1, 2)], [(6, 8), (3, 4), (2, 2), (1, 1)]
    maps = [torch.randn(1, 32, *size) for size in sizes]
    paddings = [torch.ones(1, *size, dtype=torch.bool) for size in sizes]
    for one, (height, width) in zip(paddings, inside):
        one[:, :height, :width] = False
    changed = [torch.where(p[:, None], 50.0, m) for m, p in zip(maps, paddings)]
    wider = [torch.nn.functional.pad(m, (0, 4)) for m in maps[:2]] + maps[2:]
    further = [torch.nn.functional.pad(p, (0, 4), value=True) for p in paddings[:2]] + paddings[2:]
    with torch.no_grad():
        wanted = model.transformer(maps, paddings)
        for found in (model.transformer(changed, paddings), model.transformer(wider, further)):
            torch.testing.assert_close(found.layers, wanted.layers, atol=1e-4, rtol=1e-4)


def test_boxes_are_wanted_in_the_frame_of_the_original(model):
    (at_size,) = found_by(model, sample())
    (found,) = found_by(model, {**sample(), "height": 640, "width": 960})
    assert found.image_size == (640, 960)
    assert found.scores[0] == at_size.scores[0]
    torch.testing.assert_close(
        found.pred_boxes.tensor[0] / 10, at_size.pred_boxes.tensor[0], atol=1e-3, rtol=0
    )
    assert found.pred_boxes.tensor[:, 2].max() <= 960
    (without,) = found_by(model, {"image": sample()["image"]})
    equal(without, at_size)


def test_the_choice_of_boxes_can_be_changed(model):
    choice = detection_choice(model)
    (before,) = found_by(model, sample())
    middle = before.scores.median().item()
    with changed_choice(choice, choice.threshold_for(middle), 5):
        (few,) = found_by(model, sample())
    assert len(few) <= 5 and few.scores.min() > middle
    with changed_choice(choice, 1.0, 5):
        (none,) = found_by(model, sample())
    assert len(none) == 0 and none.pred_boxes.tensor.shape == (0, 4)
    equal(found_by(model, sample())[0], before)


def test_without_language_it_finds_objects_alone():
    model = small_mavl(language=False)
    (found,) = found_by(model, sample())
    assert found.pred_classes.eq(0).all() and len(found) > 1
    image = model.read_images([sample()["image"]])
    outputs = model.predict_queries(image, None)
    assert outputs["pred_logits"].shape == (1, 20, 2) and len(outputs["aux_outputs"]) == 1
    with pytest.raises(OVDError, match="tells no classes apart"):
        model.set_vocabulary(["cat"])
    assert model.vocabulary is None
    with pytest.raises(OVDError, match="reads no captions"):
        found_by(model, sample(caption=CAPTION))


def test_parts_belong_together():
    with pytest.raises(OVDError, match="text_backbone and fusion belong together"):
        small_mavl(fusion=None, language=True)


# Merging, beyond the golden numbers.


def test_groups_do_not_suppress_each_other():
    """Also left of the image and above it."""
    boxes = torch.tensor([[[0.0, 0.0, 0.4, 0.4], [0.5, 0.5, 0.2, 0.2]]]).repeat(3, 1, 1)
    scores = torch.tensor([[0.9, 0.8], [0.7, 0.6], [0.5, 0.4]])
    merging = QueryMerging(nms_threshold=0.5)
    assert merging(boxes, scores, (50, 100)).scores.tolist() == pytest.approx([0.9, 0.8])
    apart = merging(boxes, scores, (50, 100), groups=[0, 1, 0])
    assert apart.scores.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.6])
    assert apart.groups.tolist() == [0, 0, 1, 1]
    merging.nms_threshold = 1.0
    assert len(merging(boxes, scores, (50, 100)).scores) == 6
    merging.max_detections = 2
    assert merging(boxes, scores, (50, 100)).scores.tolist() == pytest.approx([0.9, 0.8])


@pytest.mark.parametrize("texts", [0, 2])
def test_nothing_to_merge(texts):
    merging = QueryMerging(score_threshold=0.5)
    found = merging(torch.rand(texts, 4, 4), torch.full((texts, 4), 0.1), (10, 20))
    assert found.boxes.shape == (0, 4) and len(found.scores) == len(found.groups) == 0


def test_whole_pixels_are_cut_towards_zero():
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.5]])
    assert boxes_in_pixels(boxes, (33, 77), whole=True).tolist() == [[-11, -4, 26, 11]]
