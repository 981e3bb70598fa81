"""Teachers that find the phrases of captions: a random GLIP, detectors asked in words."""

import pytest
import torch
from small_glip import small_config, small_glip
from tiny_detectors import save_dino

from ovd_d2.inference.open_detector import inference_config, to_sample
from ovd_d2.proposals.phrase_grounders import (
    AskedForPhrases,
    CaptionReader,
    build_phrase_grounder,
)
from ovd_d2.structures import TokenSpans

CAPTION = TokenSpans("a cat beside a red dog", (((2, 5),), ((15, 22),)))


def make_image(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(3, 70, 110, generator=generator) * 255).byte()


@pytest.fixture
def glip(tmp_path, monkeypatch):
    """A small GLIP, and its run."""
    model = small_glip(monkeypatch, max_tokens=16)
    torch.save({"model": model.state_dict()}, tmp_path / "model_final.pth")
    cfg = small_config(SCORE_THRESH_TEST=0.9)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 64, 128
    cfg.VERSION = 2
    (tmp_path / "config.yaml").write_text(cfg.dump())
    return model, cfg, tmp_path / "model_final.pth"


def test_glip_reads_the_caption_as_a_whole(glip):
    model, cfg, weights = glip
    teacher = build_phrase_grounder(f"model:{weights}", 0.0)
    assert isinstance(teacher, CaptionReader)
    assert teacher.name.startswith(f"model:{weights.parent.name}/model_final.pth@")
    image = make_image()
    found = teacher(image, CAPTION)
    sample = to_sample(image.permute(1, 2, 0).numpy(), inference_config(cfg, "cpu"))
    expected = model([{**sample, "caption": CAPTION}])[0]["instances"]
    assert len(found) == 2 and sum(len(boxes) for boxes, _ in found) == len(expected) > 0
    for phrase, (boxes, scores) in enumerate(found):
        rows = expected[expected.pred_classes == phrase]
        assert torch.equal(boxes, rows.pred_boxes.tensor) and torch.equal(scores, rows.scores)
        assert len(boxes) and (scores.diff() <= 0).all()
        assert (boxes[:, 2:] <= torch.tensor([110.0, 70])).all()  # in pixels of the image


def test_a_threshold_of_the_config_hides_nothing_that_is_of_use(glip):
    _, _, weights = glip  # their config drops what scores less than 0.9: everything
    image = make_image()
    assert [len(boxes) for boxes, _ in CaptionReader(str(weights), 0.95)(image, CAPTION)] == [0, 0]
    assert all(len(boxes) for boxes, _ in CaptionReader(str(weights), 0.0)(image, CAPTION))


def test_phrases_behind_what_glip_reads_get_no_box(glip):
    """16 tokens: [CLS], 14 words, [SEP]."""
    model, _, weights = glip
    teacher = CaptionReader(str(weights))
    text = " ".join([CAPTION.caption, "and", "very " * 6, "old dog near a tree"])
    places = [text.index("old dog"), text.index("tree")]
    spans = (((places[0], places[0] + 7),), ((places[1], places[1] + 4),))
    long = TokenSpans(text, CAPTION.spans + spans)
    assert model.cut_to_fit(CAPTION) is CAPTION
    assert model.cut_to_fit(long) == CAPTION  # "old" is the last word that is read
    image = make_image()
    for first, second in zip(teacher(image, long), teacher(image, CAPTION)):
        assert torch.equal(first[0], second[0]) and len(first[0])
    assert [len(scores) for _, scores in teacher(image, long)[2:]] == [0, 0]
    nothing = TokenSpans(text, spans[1:])
    assert [len(boxes) for boxes, _ in teacher(image, nothing)] == [0]


def test_grounding_dino_is_asked_for_each_phrase(tmp_path):
    torch.manual_seed(0)
    save_dino(tmp_path)
    teacher = build_phrase_grounder(f"hf:{tmp_path}", 0.5)
    assert teacher.name.startswith("hf:grounding-dino@")
    image = make_image()
    found = teacher(image, CAPTION)
    for (boxes, scores), phrase in zip(found, ("cat", "red dog"), strict=True):
        ((expected, wanted),) = teacher._detector(image, [phrase])
        torch.testing.assert_close(boxes, expected, atol=1e-2, rtol=0)  # they do not overlap
        torch.testing.assert_close(scores, wanted, atol=1e-5, rtol=0)
    assert not torch.allclose(found[0][1], found[1][1])


def test_duplicates_of_a_query_are_left_out_and_other_phrases_stay():
    """IoU of the first two: 90 / 110; the third is apart."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [50, 0, 60, 10]])
    scores = torch.tensor([0.9, 0.8, 0.7])

    class Detector:
        name = "fake@1"

        def __call__(self, image, queries):
            assert tuple(queries) == ("cat", "red dog")
            return [(boxes, scores), (boxes[1:], scores[1:])]

    first, second = AskedForPhrases(Detector())(make_image(), CAPTION)
    assert torch.equal(first[0], boxes[[0, 2]]) and torch.equal(first[1], scores[[0, 2]])
    assert torch.equal(second[0], boxes[1:]) and torch.equal(second[1], scores[1:])
