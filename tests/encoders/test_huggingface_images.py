"""CLIP, SigLIP and SigLIP 2 of transformers: pixels, tokens and features are the model's own."""

import json

import pytest
import tiny_clip_models as tiny_models
import torch
from test_image_text_model import as_pil, check, photos
from torch.nn.functional import normalize

from ovd_d2.encoders import ImagePreprocessing, build_image_text_model, build_text_encoder
from ovd_d2.errors import OVDError

TEXTS = ["a photo of the Red cat", "dog", "the mug can"]
HALF = (0.5, 0.5, 0.5)


def processor_of(kind):
    from transformers import CLIPImageProcessor, SiglipImageProcessor

    if kind == "clip":
        return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    return SiglipImageProcessor(
        size={"height": 32, "width": 32}, resample=2 if kind == "siglip2" else 3
    )


PREPROCESSING = {
    "clip": ImagePreprocessing(32),
    "siglip": ImagePreprocessing(32, HALF, HALF, "squash"),
    "siglip2": ImagePreprocessing(32, HALF, HALF, "squash", "bilinear"),  # of fixed size
}


@pytest.fixture(scope="module", params=PREPROCESSING)
def family(request, tmp_path_factory):
    """(kind, folder, transformers' model, its image processor), as published and as saved."""
    folder = tmp_path_factory.mktemp(request.param)
    save = tiny_models.save_hf_clip if request.param == "clip" else tiny_models.save_hf_siglip
    options = {} if request.param == "clip" else {"positions": 64}
    reference, processor = save(folder, **options), processor_of(request.param)
    processor.save_pretrained(folder)
    if request.param == "siglip2":
        tiny_models.save_siglip2_tokenizer(folder)
    return request.param, folder, reference, processor


def outputs_of(reference, folder, kind, pixels):
    """What transformers gives for tokens made as the model was trained."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if kind == "clip":
        inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    else:
        texts = [text.lower() for text in TEXTS] if kind == "siglip" else TEXTS
        inputs = tokenizer(texts, padding="max_length", max_length=64, return_tensors="pt")
        assert inputs["input_ids"].shape == (3, 64)
        inputs = {"input_ids": inputs["input_ids"]}
    return reference(**inputs, pixel_values=pixels)


@torch.no_grad()
def test_features_and_logits_are_the_models_own(family):
    kind, folder, reference, processor = family
    model = build_image_text_model(f"hf:{folder}")
    assert model.preprocessing == PREPROCESSING[kind]
    assert model.encoder_id == build_text_encoder(f"hf:{folder}").encoder_id
    images = photos(3, 32, 32)
    pixels = processor(as_pil(images), return_tensors="pt")["pixel_values"]
    expected = outputs_of(reference, folder, kind, pixels)
    check(model, expected.image_embeds, images)
    text, image = model.encode_text(TEXTS), model.encode_image(images)
    torch.testing.assert_close(text, normalize(expected.text_embeds, dim=1), atol=5e-6, rtol=0)
    logits = model.logit_scale * image @ text.T + model.logit_bias
    torch.testing.assert_close(logits, expected.logits_per_image, atol=2e-4, rtol=0)
    assert (model.logit_bias != 0) == (kind != "clip")


# Not (50, 80): of the odd margin of a centre crop, transformers drops the half pixel, where
# torchvision, as OpenAI's own preprocessing and ours, rounds it to the even number.
@pytest.mark.parametrize("size", [(50, 78), (81, 49), (32, 33), (20, 25)])
def test_pixels_are_close_to_the_processors(family, size):
    kind, folder, _, processor = family
    images = photos(2, *size, smooth=True)
    expected = processor(as_pil(images), return_tensors="pt")["pixel_values"]
    model = PREPROCESSING[kind]
    grey_levels = (model(images) - expected) * 255 * torch.tensor(model.std)[:, None, None]
    assert grey_levels.abs().max() <= 2.01


def test_a_processor_saved_whole(tmp_path):
    """transformers 5 writes its settings into processor_config.json; it is no part of the id."""
    tiny_models.save_hf_siglip(tmp_path)
    before = build_text_encoder(f"hf:{tmp_path}").encoder_id
    processor_of("siglip2").save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").unlink()
    path = tmp_path / "processor_config.json"
    path.write_text(json.dumps({"image_processor": settings, "processor_class": "SiglipProcessor"}))
    model = build_image_text_model(f"hf:{tmp_path}")
    assert model.preprocessing == PREPROCESSING["siglip2"] and model.encoder_id == before
    path.write_text("{}")
    with pytest.raises(OVDError, match=r"processor_config\.json"):
        build_image_text_model(f"hf:{tmp_path}")


def test_a_package_that_a_tokenizer_lacks_is_named(tmp_path):
    tiny_models.save_hf_siglip(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({"tokenizer_class": "SiglipTokenizer"}))
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(
        OVDError, match=r"\([A-Za-z].{20,}\); give .* or install the package that is missing"
    ):
        build_text_encoder(f"hf:{tmp_path}")


@torch.no_grad()
def test_siglip2_of_variable_resolution_gives_text_alone(tmp_path):
    reference = tiny_models.save_hf_siglip(tmp_path, positions=64, family="Siglip2")
    processor_of("siglip2").save_pretrained(tmp_path)
    tiny_models.save_siglip2_tokenizer(tmp_path)
    features = build_text_encoder(f"hf:{tmp_path}").encode(["Dog"])
    letters = sorted(set("".join(tiny_models.WORDS)))
    ids = torch.zeros(1, 64, dtype=torch.long)  # 0 is <pad>
    ids[0, :3] = torch.tensor([6 + letters.index(letter) for letter in "dog"])
    expected = reference.text_model(input_ids=ids).pooler_output
    torch.testing.assert_close(features, normalize(expected, dim=1), atol=2e-6, rtol=0)
    with pytest.raises(OVDError, match="'siglip2' model, which has no image tower of fixed size"):
        build_image_text_model(f"hf:{tmp_path}")


@pytest.mark.parametrize(
    "settings",
    [
        None,
        "{",
        {},
        {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}},
        {"size": {"height": 32, "width": 48}, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]},
        {"size": 32, "do_normalize": False, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]},
        {"size": 32, "do_center_crop": False, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]},
        {"size": 32, "resample": 0, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]},
    ],
)
def test_unknown_preprocessing_is_refused_by_name(tmp_path, settings):
    tiny_models.save_hf_clip(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    if settings is not None:
        path.write_text(settings if isinstance(settings, str) else json.dumps(settings))
    with pytest.raises(OVDError, match=r"preprocessor_config\.json"):
        build_image_text_model(f"hf:{tmp_path}")


def test_model_without_image_tower_is_refused(tmp_path):
    tiny_models.save_hf_bert(tmp_path)
    with pytest.raises(OVDError, match="'bert' model, which has no image tower"):
        build_image_text_model(f"hf:{tmp_path}")
