"""What one-stage and zero-shot detectors see in example boxes, and rows given to them."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes
from PIL import Image
from small_detclip import detclip_config, small_detclip
from small_glip import small_glip
from tiny_detectors import SAVE
from torchvision.ops import box_convert, box_iou

from ovd_d2.errors import OVDError
from ovd_d2.inference import ByExamples, OpenVocabPredictor
from ovd_d2.inference.example_embeddings import check_sees_examples, learn_rows
from ovd_d2.inference.examples import as_examples
from ovd_d2.language import TextEmbeddings
from ovd_d2.language.example_rows import ExampleEmbedder
from ovd_d2.modeling import set_vocabulary
from ovd_d2.modeling.box_vectors import vectors_of_boxes

BOXES = torch.tensor([[10.0, 5.0, 50.0, 40.0], [0.0, 0.0, 90.0, 60.0]])


def test_the_place_with_the_best_iou_and_the_weighted_mean():
    vectors = torch.tensor([[3.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    predicted = torch.tensor([[0.0, 0, 10, 10], [0, 0, 20, 20], [5, 5, 9, 9]])
    weights = torch.tensor([1.0, 2.0, 0.5])
    boxes = torch.tensor([[0.0, 0, 19, 18], [5, 5, 10, 10], [1, 0, 10, 10]])
    found, around = vectors_of_boxes(vectors, predicted, weights, boxes)
    assert torch.equal(found, torch.tensor([[0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]]))
    torch.testing.assert_close(around, torch.tensor([0.5, 2.0]) / 3.5)


def test_detclip_gives_the_region_of_the_anchor_that_predicts_the_box():
    model = small_detclip()
    image = (torch.rand(3, 64, 96) * 255).byte()
    found, around = model.embed_examples(image, BOXES)
    with torch.no_grad():
        images = model._preprocess([image])
        features = model._features(images)
        outputs = model.head(features)
        anchors = Boxes.cat(model.anchor_generator(features)).tensor
        predicted = model.detections.box2box_transform.apply_deltas(outputs.box_deltas[0], anchors)
        predicted[:, 0::2] = predicted[:, 0::2].clamp(0, 96)
        predicted[:, 1::2] = predicted[:, 1::2].clamp(0, 64)
        regions = F.normalize(outputs.regions[0], dim=1)
        ious = box_iou(BOXES, predicted)
        weights = outputs.centerness[0].sigmoid()
    for box in range(2):
        best = max(range(len(predicted)), key=lambda k: float(ious[box, k]))
        torch.testing.assert_close(found[box], regions[best])
    torch.testing.assert_close(around, (regions * weights[:, None]).sum(0) / weights.sum())


def test_detclip_mixes_examples_and_words_in_its_own_way():
    model, cfg = small_detclip(), detclip_config()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.FORMAT = 0, "RGB"
    pixels = (torch.rand(64, 96, 3) * 255).byte()
    given = as_examples({"thing 7": [(pixels.numpy(), tuple(BOXES[0].tolist()))], "cat": None})
    trained, words = model.vocabulary, model.class_embedder
    rows = learn_rows(model, cfg, given, words=words, trained=trained, input_format="RGB")
    (found, _), around = model.embed_examples(pixels.permute(2, 0, 1), BOXES)
    common = F.normalize(words.embed(trained).embeddings.mean(0), dim=0)
    wanted = F.normalize(0.8 * common + 0.2 * F.normalize(found - around, dim=0), dim=0)
    torch.testing.assert_close(rows.embeddings[0], wanted, rtol=0, atol=1e-5)
    cat = words.embed(trained).embeddings[0]
    set_vocabulary(model, ["thing 7", "cat"], ExampleEmbedder(words, rows))
    torch.testing.assert_close(model._class_rows(), torch.stack([wanted, cat]), rtol=0, atol=1e-5)
    set_vocabulary(model, ["cat"], words)
    torch.testing.assert_close(model._class_rows()[0], cat, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["owlv2", "owlvit"])
def test_owl_gives_the_image_query_of_transformers(kind, tmp_path):
    """Where transformers chooses the same patch: the box that this patch predicts."""
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    torch.manual_seed(0)
    SAVE[kind](tmp_path)
    pixels = (torch.rand(3, 64, 64) * 255).byte()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / "picture.png")
    predictor = OpenVocabPredictor.from_pretrained(f"hf:{tmp_path}", device="cpu")
    model = AutoModelForZeroShotObjectDetection.from_pretrained(tmp_path).eval()
    processor = AutoProcessor.from_pretrained(tmp_path)
    inputs = processor(query_images=pixels, images=pixels, return_tensors="pt")
    with torch.no_grad():
        maps = model.image_embedder(inputs["pixel_values"])[0]
        features = maps.flatten(1, 2)
        boxes = box_convert(model.box_predictor(features, maps)[0], "cxcywh", "xyxy") * 64
        wanted = model.class_predictor(features)[1][0]
    inside = ((boxes >= 0) & (boxes <= 64)).all(dim=1).nonzero()[:, 0]
    assert len(inside) > 1
    found, around = predictor.model.embed_examples(pixels, boxes[inside])
    torch.testing.assert_close(found, F.normalize(wanted[inside], dim=1), rtol=0, atol=1e-4)
    torch.testing.assert_close(around, F.normalize(wanted, dim=1).mean(0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["owlv2", "owlvit"])
def test_owl_takes_rows_beside_words(kind, tmp_path):
    torch.manual_seed(0)
    SAVE[kind](tmp_path)
    pixels = (torch.rand(48, 80, 3) * 255).byte().numpy()
    predictor = OpenVocabPredictor.from_pretrained(
        f"hf:{tmp_path}", device="cpu", vocabulary="cat, red mug", score_threshold=0.0
    )
    plain = predictor.predict(pixels)
    assert predictor.encoder_id.startswith(f"hf:{kind}@")
    rows = predictor.words.embed(predictor.vocabulary)
    set_vocabulary(predictor.model, "cat, red mug", rows)  # its own rows, given
    given = predictor.predict(pixels)
    torch.testing.assert_close(given.scores, plain.scores, rtol=0, atol=1e-5)
    assert torch.equal(given.pred_classes, plain.pred_classes)
    long = (
        "a name of far more words than the text tower of any of these models can ever read at once"
    )
    box = (10, 5, 50, 40)
    predictor.set_vocabulary({"cat": None, long: [(pixels, box)], "my dog": [(pixels, box)] * 2})
    found = predictor.predict(pixels)
    assert predictor.vocabulary.names == ("cat", long, "my dog")
    same = {k: found.scores[found.pred_classes == k].sort().values for k in (0, 1, 2)}
    cat = plain.scores[plain.pred_classes == 0].sort().values
    torch.testing.assert_close(same[0], cat, rtol=0, atol=1e-5)
    torch.testing.assert_close(same[1], same[2], rtol=0, atol=1e-5)  # the same example
    predictor.set_vocabulary("cat, red mug")
    assert torch.equal(predictor.predict(pixels).scores, plain.scores)
    with pytest.raises(OVDError, match="HuggingFaceDetector embeds words itself"):
        predictor.set_vocabulary(ByExamples({"mug": [(pixels, box)]}, how="crop"))


def test_a_row_of_another_width_is_refused(tmp_path):
    model = small_detclip()
    with pytest.raises(OVDError, match="have 5 values"):
        set_vocabulary(model, "cat", TextEmbeddings(torch.randn(1, 5), ("cat",), "x"))


@pytest.mark.parametrize("kind", ["grounding-dino", "omdet-turbo"])
def test_detectors_that_mix_words_and_image_early_are_refused(kind, tmp_path):
    SAVE[kind](tmp_path)
    predictor = OpenVocabPredictor.from_pretrained(f"hf:{tmp_path}", device="cpu")
    pixels = (torch.rand(48, 80, 3) * 255).byte().numpy()
    with pytest.raises(OVDError, match="HuggingFaceDetector looks for words alone: examples need"):
        predictor.set_vocabulary({"mug": [(pixels, (10, 5, 50, 40))]})
    predictor.set_vocabulary("cat")


def test_glip_is_refused(monkeypatch):
    with pytest.raises(OVDError, match="GLIP looks for words alone: examples need a detector with"):
        check_sees_examples(small_glip(monkeypatch))
