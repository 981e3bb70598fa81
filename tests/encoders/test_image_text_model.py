import json

import numpy as np
import pytest
import tiny_clip_models as tiny_models
import torch
from PIL import Image
from torch.nn.functional import normalize

from ovd_d2.encoders import (
    ImagePreprocessing,
    TextEncoder,
    build_image_text_model,
    build_text_encoder,
)
from ovd_d2.errors import OVDError
from ovd_d2.language import TextEmbeddingBank, Vocabulary


def photos(count, height, width, smooth=False):
    """(N, 3, H, W) uint8; smooth ones change slowly, as photographs do."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, 4, 4) if smooth else (count, 3, height, width)
    images = torch.rand(shape, generator=generator)
    images = torch.nn.functional.interpolate(images, size=(height, width), mode="bicubic")
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def as_pil(images):
    return [Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0))) for image in images]


def features_of(output):
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def check(model, expected, images):
    features = model.encode_image(images)
    assert features.dtype == torch.float32 and not features.requires_grad
    torch.testing.assert_close(features, normalize(expected, dim=1), atol=5e-6, rtol=0)
    assert model.encode_image(images[:0]).shape == (0, model.dim)
    assert model.encode_text([]).shape == (0, model.dim)


@pytest.fixture(scope="module")
def openai(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "tiny.pt"
    model = tiny_models.openai_clip_model()
    torch.save(model.state_dict(), path)
    return model, f"openai-clip:{path}"


@torch.no_grad()
def test_openai_clip_is_clip_with_its_own_preprocessing(openai):
    from clip.clip import _transform

    reference, spec = openai
    model = build_image_text_model(spec)
    assert (model.dim, model.preprocessing) == (32, ImagePreprocessing(32))
    images = photos(70, 32, 32)  # more than one batch; no resampling, hence exact
    pixels = torch.stack([_transform(32)(image) for image in as_pil(images)])
    check(model, reference.encode_image(pixels), images)


def test_both_sides_and_the_text_encoder_share_one_id(openai, tmp_path):
    _, spec = openai
    before = torch.random.get_rng_state()
    model, encoder = build_image_text_model(spec), build_text_encoder(spec)
    assert torch.equal(before, torch.random.get_rng_state())
    assert model.encoder_id == encoder.encoder_id
    assert torch.equal(model.encode_text(["a cat"]), encoder.encode(["a cat"]))
    assert isinstance(model.text_encoder, TextEncoder)
    bank = TextEmbeddingBank(model.text_encoder, cache_dir=tmp_path)
    assert bank.embed(Vocabulary(("cat",))).encoder_id == model.encoder_id


@pytest.mark.parametrize("size", [(50, 80), (81, 49), (32, 33), (20, 25)])
@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_resampling_is_close_to_pil(size, resize):
    from torchvision.transforms import CenterCrop, InterpolationMode, Resize

    images = photos(2, *size, smooth=True)
    wanted = Resize(32 if resize == "crop" else (32, 32), InterpolationMode.BICUBIC)
    expected = [np.asarray(CenterCrop(32)(wanted(image))) for image in as_pil(images)]
    expected = torch.from_numpy(np.stack(expected)).permute(0, 3, 1, 2).float()
    prepare = ImagePreprocessing(32, mean=(0.0,) * 3, std=(1 / 255,) * 3, resize=resize)
    assert (prepare(images) - expected).abs().max() <= 2.01  # grey levels of 255


@torch.no_grad()
def test_hf_clip(tmp_path):
    from transformers import CLIPImageProcessor

    reference = tiny_models.save_hf_clip(tmp_path)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    processor.save_pretrained(tmp_path)
    model = build_image_text_model(f"hf:{tmp_path}")
    assert model.preprocessing == ImagePreprocessing(32)
    assert model.encoder_id == build_text_encoder(f"hf:{tmp_path}").encoder_id
    images = photos(3, 32, 32)
    pixels = processor(as_pil(images), return_tensors="pt")["pixel_values"]
    check(model, features_of(reference.get_image_features(pixel_values=pixels)), images)


@torch.no_grad()
def test_hf_siglip(tmp_path):
    from transformers import SiglipImageProcessor

    reference = tiny_models.save_hf_siglip(tmp_path)
    processor = SiglipImageProcessor(size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    model = build_image_text_model(f"hf:{tmp_path}")
    half = (0.5, 0.5, 0.5)
    assert model.preprocessing == ImagePreprocessing(32, half, half, resize="squash")
    images = photos(3, 32, 32)
    pixels = processor(as_pil(images), return_tensors="pt")["pixel_values"]
    check(model, features_of(reference.get_image_features(pixel_values=pixels)), images)


@pytest.mark.parametrize(
    "settings",
    [
        None,
        "{",
        {},
        {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}},
        {"size": {"height": 32, "width": 48}, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]},
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


@torch.no_grad()
def test_open_clip(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    settings = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1,
                     "layers": 1},
    }  # fmt: skip
    (tmp_path / "tiny-test.json").write_text(json.dumps(settings))
    open_clip.add_model_config(tmp_path)
    reference = open_clip.create_model("tiny-test").eval()
    torch.save(reference.state_dict(), tmp_path / "weights.pt")
    model = build_image_text_model(f"open_clip:tiny-test:{tmp_path / 'weights.pt'}")
    assert model.dim == 16 and model.encoder_id.startswith("open_clip:tiny-test@")
    images = photos(3, 32, 32)
    pixels = torch.stack([open_clip.image_transform(32, False)(i) for i in as_pil(images)])
    check(model, reference.encode_image(pixels), images)
    texts = ["a photo of a cat", "dog"]
    expected = normalize(reference.encode_text(open_clip.tokenize(texts)), dim=1)
    torch.testing.assert_close(model.encode_text(texts), expected, atol=5e-6, rtol=0)
    with pytest.raises(OVDError, match="cannot load model 'tiny-test' with weights 'no_such_tag'"):
        build_image_text_model("open_clip:tiny-test:no_such_tag")


def test_open_clip_missing_or_misspelt(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(OVDError, match="pip install 'open_clip_torch>=3'"):
        build_image_text_model("open_clip:ViT-B-32:laion2b")
    with pytest.raises(OVDError, match="write open_clip:MODEL:TAG_OR_FILE"):
        build_image_text_model("open_clip:ViT-B-32")


@pytest.mark.parametrize("spec", ["minilm", "openai-clip", "", "align:base"])
def test_unknown_kinds_are_refused(spec):
    with pytest.raises(OVDError, match="unknown image-text model"):
        build_image_text_model(spec)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(3, 32, 32, dtype=torch.uint8),
        torch.zeros(1, 1, 32, 32, dtype=torch.uint8),
        torch.zeros(1, 32, 32, 3, dtype=torch.uint8),
        torch.zeros(1, 3, 32, 32),
    ],
)
def test_wrong_images_are_refused(openai, images):
    with pytest.raises(OVDError, match=r"must be \(N, 3, H, W\) uint8 RGB"):
        build_image_text_model(openai[1]).encode_image(images)
