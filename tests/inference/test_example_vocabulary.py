"""Classes by visual examples: their rows by hand, mixed vocabularies, profiles, who cannot."""

import json

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes
from PIL import Image
from random_models import NAMES, assert_same, make_pixels, write_checkpoint
from torch.nn.functional import normalize

from ovd_d2.errors import OVDError
from ovd_d2.inference import ByExamples, OpenVocabPredictor
from ovd_d2.inference.example_vocabulary import write_profile
from ovd_d2.inference.open_detector import to_sample

FIRST, SECOND = make_pixels(120, 160, 1), make_pixels(200, 150, 2)
BOXES = [(10.0, 20.0, 70.0, 90.0), (50.0, 5.0, 150.0, 110.0), (30.0, 60.0, 140.0, 190.0)]


@pytest.fixture
def files(tmp_path):
    for name, pixels in (("first.png", FIRST), ("second.png", SECOND)):
        Image.fromarray(pixels).save(tmp_path / name)
    return tmp_path / "first.png", tmp_path / "second.png"


@pytest.fixture
def examples(files):
    first, second = files
    pairs = [(first, BOXES[0]), (first, BOXES[1]), (second, BOXES[2])]
    return {"my mug": pairs[::2], "cat": None, "traffic light": pairs[1:2]}


@pytest.fixture
def predictor(config, checkpoint):
    return OpenVocabPredictor(config, checkpoint, device="cpu")


def rows_of(predictor):
    """Of the classes that are looked for, not of what else competes."""
    rows = predictor.model.roi_heads.box_predictors[0].cls_score.class_embeddings
    return rows[: len(predictor.vocabulary)]


def seen(predictor, pixels, boxes):
    """What the heads see in boxes, and the mean of what they see in the proposals."""
    model, heads = predictor.model, predictor.model.roi_heads
    sample = to_sample(pixels, predictor.cfg)
    height, width = pixels.shape[:2]
    new_height, new_width = sample["image"].shape[1:]
    scale = torch.tensor([new_width / width, new_height / height] * 2)
    with torch.no_grad():
        images = model.preprocess_image([sample])
        features = model.backbone(images.tensor)
        (proposals,), _ = model.proposal_generator(images, features, None)
        found = heads.region_embeddings(features, [Boxes(torch.tensor(boxes) * scale)])
        around = heads.region_embeddings(features, [proposals.proposal_boxes])
    return found, around.mean(dim=0)


def test_rows_are_the_averages_by_hand(predictor, examples):
    words = predictor.words.embed(predictor.vocabulary).embeddings
    predictor.set_vocabulary(examples)
    assert predictor.vocabulary.names == ("my mug", "cat", "traffic light")
    assert predictor.vocabulary.is_novel == (True, False, True)
    first, around_first = seen(predictor, FIRST, BOXES[:2])
    second, around_second = seen(predictor, SECOND, BOXES[2:])
    around = (around_first + around_second) / 2
    common = normalize(words.mean(dim=0), dim=0)
    means = {"my mug": (first[0] + second[0]) / 2, "traffic light": first[1]}
    wanted = {
        name: 0.7 * common + 0.3 * normalize(normalize(mean, dim=0) - around, dim=0)
        for name, mean in means.items()
    }
    wanted["traffic light"] += 0.7 * 0.2 * (words[2] - common)  # a known name
    wanted = {name: normalize(row, dim=0) for name, row in wanted.items()}
    rows = rows_of(predictor)
    torch.testing.assert_close(rows[0], wanted["my mug"], rtol=0, atol=1e-5)
    torch.testing.assert_close(rows[2], wanted["traffic light"], rtol=0, atol=1e-5)
    torch.testing.assert_close(rows[1], words[0], rtol=0, atol=1e-6)


def test_neither_order_nor_company_nor_kind_of_picture_matters(predictor, examples, files):
    predictor.set_vocabulary(examples)
    wanted = rows_of(predictor).clone()
    predictor.set_vocabulary({"cat": None, "traffic light": examples["traffic light"],
                              "my mug": examples["my mug"][::-1]})  # fmt: skip
    assert torch.equal(rows_of(predictor), wanted[[1, 2, 0]])
    of_file = {files[0]: FIRST, files[1]: SECOND}
    for kind in (Image.fromarray, lambda pixels: np.ascontiguousarray(pixels[:, :, ::-1])):
        pictures = {file: kind(pixels) for file, pixels in of_file.items()}
        given = {
            name: pairs and [(pictures[file], box) for file, box in pairs]
            for name, pairs in examples.items()
        }
        predictor.set_vocabulary(given)
        torch.testing.assert_close(rows_of(predictor), wanted, rtol=0, atol=1e-6)


def test_a_turned_picture_is_seen_as_a_viewer_shows_it(predictor, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(FIRST).copy()).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(FIRST).save(tmp_path / "plain.png")
    rows = []
    for name in ("turned.png", "plain.png"):
        predictor.set_vocabulary({"mug": [(tmp_path / name, (100, 10, 159, 119))]})
        rows.append(rows_of(predictor).clone())
    assert torch.equal(*rows)


def test_what_is_found_does_not_depend_on_the_batch(predictor, examples):
    predictor.set_vocabulary(examples)
    pictures = [make_pixels(120, 160, seed) for seed in range(5)]
    for alone, together in zip(map(predictor.predict, pictures), predictor.predict(pictures)):
        assert_same(alone, together, tolerance=1e-3)
        assert len(alone) > 0 and set(alone.pred_classes.tolist()) <= {0, 1, 2}


def test_words_alone_are_again_those_of_the_model(predictor, examples):
    predictor.set_vocabulary(NAMES)
    before, rows = predictor.predict(FIRST), rows_of(predictor).clone()
    predictor.set_vocabulary(examples)
    assert predictor.encoder_id == predictor.words.encoder_id
    assert not torch.equal(rows_of(predictor), rows)
    predictor.set_vocabulary(NAMES)
    assert torch.equal(rows_of(predictor), rows)
    assert_same(predictor.predict(FIRST), before)


def test_attributes_go_with_examples(predictor, examples):
    predictor.set_vocabulary(examples)
    predictor.set_attributes("red, striped")
    assert predictor.vocabulary.names[:2] == ("red my mug", "striped my mug")
    assert len(predictor.predict(FIRST)) > 0


def test_the_first_vocabulary_may_be_examples(config, checkpoint, predictor, examples):
    predictor.set_vocabulary(examples)
    other = OpenVocabPredictor(config, checkpoint, device="cpu", vocabulary=examples)
    assert torch.equal(rows_of(other), rows_of(predictor))
    words = {"cat": None, "red mug": None}
    other.set_vocabulary(words)
    assert torch.equal(rows_of(other), other.words.embed(other.vocabulary).embeddings)


def test_what_cannot_be_used_changes_nothing(predictor, examples, files):
    before, rows = predictor.vocabulary, rows_of(predictor).clone()
    for wrong, sentence in (
        (
            {"mug": [(files[0], (0, 0, 161, 130))]},
            "'mug': the box .*first.png, which has 160 x 120",
        ),
        ({"mug": [(files[0].with_name("no.png"), BOXES[0])]}, "'mug': There is no image .*no.png"),
        (ByExamples(examples, how="eyes"), '"model" or "crop", not \'eyes\''),
        (ByExamples(examples, how="crop"), "reads no images"),
        (ByExamples(files[0].with_name("no.json")), "Cannot read the examples .*no.json"),
        (str(files[0].with_name("no.safetensors")), "no.safetensors do not exist"),
        (ByExamples(examples, words=""), "empty vocabulary"),
    ):
        with pytest.raises(OVDError, match=sentence):
            predictor.set_vocabulary(wrong)
        assert predictor.vocabulary is before and torch.equal(rows_of(predictor), rows)


def test_profiles(predictor, config, examples, tmp_path):
    wanted = ByExamples(examples).checked()
    predictor.set_vocabulary(wanted)
    found, rows = predictor.predict(FIRST), rows_of(predictor).clone()
    path = tmp_path / "my.safetensors"
    write_profile(predictor, wanted, path)
    manifest = json.loads((tmp_path / "my.safetensors.json").read_text())
    assert manifest["encoder_id"] == predictor.encoder_id and manifest["by"] == "model"
    assert manifest["names"] == ["my mug", "cat", "traffic light"]
    assert manifest["examples"] == [2, 0, 1] and len(manifest["model"]) == 16
    flags = predictor.vocabulary.is_novel
    predictor.set_vocabulary("dog")
    predictor.set_vocabulary(str(path))
    assert torch.equal(rows_of(predictor), rows) and predictor.vocabulary.is_novel == flags
    assert_same(predictor.predict(FIRST), found)
    predictor.set_vocabulary(ByExamples(path, words="dog, cat"))
    assert predictor.vocabulary.names == ("my mug", "cat", "traffic light", "dog")
    assert torch.equal(rows_of(predictor)[:3], rows)
    dog = predictor.words.embed(predictor.vocabulary).embeddings[3]
    torch.testing.assert_close(rows_of(predictor)[3], dog, rtol=0, atol=1e-6)


def test_a_profile_of_another_model_is_refused(predictor, config, examples, tmp_path):
    wanted, path = ByExamples(examples).checked(), tmp_path / "my.safetensors"
    predictor.set_vocabulary(wanted)
    write_profile(predictor, wanted, path)
    weights = write_checkpoint(config, tmp_path / "other/model_final.pth", seed=1)
    other = OpenVocabPredictor(config, weights, device="cpu")
    with pytest.raises(OVDError, match="my.safetensors says what another model sees"):
        other.set_vocabulary(str(path))
    manifest = tmp_path / "my.safetensors.json"
    content = json.loads(manifest.read_text())
    for key, value, sentence in (
        ("encoder_id", "clip@123", "is of the space of clip@123, this model's words"),
        ("examples", [1], "does not say which names and examples"),
        ("examples", ["a", 0, 0], "does not say which names and examples"),
        ("names", None, "does not say which names and examples"),
    ):
        manifest.write_text(json.dumps({**content, key: value}))
        with pytest.raises(OVDError, match=sentence):
            predictor.set_vocabulary(str(path))
    assert predictor.vocabulary.names == ("my mug", "cat", "traffic light")


def test_crops_of_the_encoder_and_profiles_of_them(tmp_path, files):
    """By hand, with the packaged model and its teacher; such a profile serves any model of it."""
    from ovd_d2.encoders.region_encoder import CropRegionEncoder
    from ovd_d2.encoders.registry import build_image_text_model

    predictor = OpenVocabPredictor.from_pretrained("mini", device="cpu")
    words = predictor.words.embed(predictor.trained).embeddings.double()
    wanted = ByExamples({"thing 7": [(files[0], BOXES[0])]}, how="crop").checked()
    predictor.set_vocabulary(wanted)
    half = [(x, y, x + 80, y + 60) for y in (0, 30, 60) for x in (0, 40, 80)]
    encoder = CropRegionEncoder(build_image_text_model("mini-teacher"), (1.0,))
    image = torch.from_numpy(FIRST).permute(2, 0, 1)
    (found,) = encoder.encode([image], [torch.tensor([BOXES[0], *half])])
    own = normalize(found[0] - found[1:].mean(dim=0), dim=0)
    common = normalize(words.mean(dim=0), dim=0).float()
    row = normalize(0.7 * common + 0.3 * own, dim=0)
    torch.testing.assert_close(rows_of(predictor)[0], row, rtol=0, atol=1e-5)
    path = tmp_path / "crops.safetensors"
    write_profile(predictor, wanted, path)
    assert json.loads((tmp_path / "crops.safetensors.json").read_text())["model"] == ""
    with torch.no_grad():
        predictor.model.roi_heads.box_predictors[0].bbox_pred.bias.add_(1.0)  # another model
    predictor.set_vocabulary(path)


def test_label_maps_and_closed_sets_are_refused(label_map_model, files):
    predictor = OpenVocabPredictor.from_pretrained(label_map_model, device="cpu")
    with pytest.raises(OVDError, match="looks for words alone: examples need a detector"):
        predictor.set_vocabulary({"mug": [(files[0], BOXES[0])]})
