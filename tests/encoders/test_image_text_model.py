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
