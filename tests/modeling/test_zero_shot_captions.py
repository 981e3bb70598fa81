"""Phrases of captions by zero-shot detectors of transformers; tiny ones with random weights."""

import pytest
import torch
from detectron2.structures import Boxes
from tiny_detectors import SAVE

from ovd_d2.errors import OVDError
from ovd_d2.modeling import HuggingFaceDetector
from ovd_d2.structures import TokenSpans

pytest.importorskip("transformers")
CAPTION = "A cat on a Red mug"  # the models read lower case
PHRASES = {"cat": (2, 5), "Red mug": (11, 18), "mug": (15, 18), "A": (0, 1)}
ALL = {"score_threshold": 0.0, "max_detections": -1, "candidates_per_prompt": 5000}
DINOS = ("grounding-dino", "mm-grounding-dino")


@pytest.fixture(scope="module", params=DINOS)
def folder(request, tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp(request.param)
    SAVE[request.param](path)
    return str(path)


def detector(folder, **options):
    options = {**ALL, "nms_threshold": 1.0, "vocabulary": None, **options}
    return HuggingFaceDetector(model=folder, **options).eval()


def picture():
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(3, 48, 80, generator=generator) * 255).byte()


def spans(*names):
    return TokenSpans(CAPTION, tuple((PHRASES[name],) for name in names))


def ground(model, caption, image=None):
    sample = {"image": picture() if image is None else image, "caption": caption}
    return model([sample])[0]["instances"]


def published(folder, words):
    """What transformers' post-processing says of the tokens of ``words``: boxes, scores."""
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    model = AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor(images=picture(), text=CAPTION.lower() + ".", return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    tokens = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    assert tokens == ["[CLS]", "a", "cat", "o", "##n", "a", "red", "mug", ".", "[SEP]"]
    others = torch.ones(outputs.logits.shape[-1], dtype=torch.bool)
    others[[tokens.index(word) for word in words]] = False
    outputs.logits = outputs.logits.masked_fill(others, float("-inf"))
    (found,) = processor.post_process_grounded_object_detection(
        outputs, threshold=0.0, target_sizes=[(48, 80)]
    )
    boxes = Boxes(found["boxes"])
    boxes.clip((48, 80))
    kept = boxes.nonempty()
    return boxes.tensor[kept], found["scores"][kept]


def assert_same(boxes, scores, wanted):
    order, other = scores.argsort(), wanted[1].argsort()
    torch.testing.assert_close(scores[order], wanted[1][other], atol=1e-5, rtol=0)
    assert len(scores) > 4 and scores.std() > 1e-4
    near = (boxes[:, None] - wanted[0][None]).abs().amax(2) < 1e-2
    assert near.any(0).all() and near.any(1).all()


@pytest.mark.parametrize("closed", ["", ".", " . "])
def test_phrases_score_what_the_post_processing_of_transformers_says(folder, closed):
    """Of their own tokens; one phrase may be inside of another."""
    caption = TokenSpans(CAPTION + closed, spans(*PHRASES).spans)
    found = ground(detector(folder), caption)
    words = [["cat"], ["red", "mug"], ["mug"], ["a"]]
    assert (found.scores.diff() <= 0).all()
    for number, tokens in enumerate(words):
        rows = found[found.pred_classes == number]
        assert_same(rows.pred_boxes.tensor, rows.scores, published(folder, tokens))


def test_a_mean_is_over_the_tokens_of_a_phrase(folder):
    def by_box(found, number):
        rows = found[found.pred_classes == number]
        return rows.scores[rows.pred_boxes.tensor[:, 0].argsort()]

    red_mug = TokenSpans(CAPTION, (((11, 14),), ((15, 18),), ((11, 18),), ((11, 14), (15, 18))))
    best, mean = (ground(detector(folder, class_score=how), red_mug) for how in ("max", "mean"))
    red, mug = by_box(best, 0), by_box(best, 1)
    torch.testing.assert_close(by_box(best, 2), torch.maximum(red, mug))
    torch.testing.assert_close(by_box(mean, 2), (red + mug) / 2)
    torch.testing.assert_close(by_box(mean, 3), by_box(mean, 2))  # in two pieces


def test_the_whole_caption_is_read(folder):
    """The other words change what a phrase scores."""
    model = detector(folder)
    alone = ground(model, TokenSpans("cat", (((0, 3),),)))
    within = ground(model, spans("cat"))
    assert not torch.allclose(alone.scores, within.scores, atol=1e-4)


def test_captions_and_classes_do_not_disturb_each_other(folder):
    model = detector(folder, vocabulary=["cat", "red dog"])
    classes = model([{"image": picture()}])[0]["instances"]
    first, second, third = model(
        [
            {"image": picture(), "caption": spans("mug")},
            {"image": picture()},
            {"image": picture(), "caption": "a caption whose phrases are not marked"},
        ]
    )
    assert set(first["instances"].pred_classes.tolist()) == {0}
    for other in (second, third):
        torch.testing.assert_close(other["instances"].scores, classes.scores, atol=1e-6, rtol=0)
    alone = ground(detector(folder), spans("mug"))  # without a vocabulary
    torch.testing.assert_close(first["instances"].scores, alone.scores, atol=1e-6, rtol=0)


def test_letters_that_grow_in_lower_case_keep_their_places(folder):
    text = "İ cat on a red mug"  # one letter, two in lower case
    found = ground(detector(folder), TokenSpans(text, (((2, 5),), ((0, 1),))))
    assert {0, 1} == set(found.pred_classes.tolist())
    captions = detector(folder).family.caption_prompt(TokenSpans("É CAT?", (((2, 5),),)))
    assert captions.spans.caption == "é cat?" and captions.spans.phrases() == ("cat",)


def test_captions_that_are_too_long(folder):
    long = "cat " * 300
    with pytest.raises(OVDError, match="has 303 tokens; at most 256 can be read"):
        ground(detector(folder), TokenSpans(long, (((0, 3),),)))


@pytest.mark.parametrize("kind", ["owlv2", "owlvit", "omdet-turbo"])
def test_other_families_are_refused_in_a_sentence(tmp_path, kind):
    from ovd_d2.inference.grounding import check_reads_captions

    SAVE[kind](tmp_path)
    model = detector(str(tmp_path), vocabulary=["cat"])
    message = rf"HuggingFaceDetector \({kind}\) finds classes and reads no captions: ground with"
    with pytest.raises(OVDError, match=message):
        check_reads_captions(model)
    with pytest.raises(OVDError, match=f"{kind} models read names and no captions"):
        model.family.caption_prompt(spans("cat"))
