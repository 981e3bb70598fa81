"""Crops against PIL, embeddings against the plain way, and boxes that are hard to crop."""

import math

import numpy as np
import PIL
import pytest
import tiny_clip_models as tiny_models
import torch
from PIL import Image
from torch.nn.functional import normalize

from ovd_d2.encoders import CropRegionEncoder, ImagePreprocessing, ImageTextModel
from ovd_d2.encoders.crop_resampling import crop_pixels, resample_crops
from ovd_d2.errors import OVDError

S = 32
HEIGHT, WIDTH = 97, 140
PILLOW_13 = int(PIL.__version__.split(".")[0]) >= 13


def photo(height=HEIGHT, width=WIDTH, noise=False):
    """(3, H, W) uint8; noise is the hardest for resampling, smooth is like a photograph."""
    size = (height, width) if noise else (8, 8)
    image = torch.nn.functional.interpolate(torch.rand(1, 3, *size), (height, width), mode="area")
    return (image[0] * 255).round().to(torch.uint8)


def as_pil(image):
    return Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0)))


def crops_by_pil(image, crops, preprocessing):
    """What CLIP's own transform (torchvision on PIL images) makes of PIL's crops."""
    from torchvision.transforms import CenterCrop, InterpolationMode, Resize

    size = preprocessing.image_size
    wanted = size if preprocessing.resize == "crop" else (size, size)
    resize = Resize(wanted, InterpolationMode(preprocessing.interpolation))
    crops = [as_pil(image).crop(crop) for crop in crops.tolist()]
    pixels = np.stack([np.asarray(CenterCrop(size)(resize(crop))) for crop in crops])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def random_crops(count):
    """All sizes from one pixel to the image, all shapes from points to lines."""
    x = torch.randint(WIDTH, (count, 2)).sort(dim=1).values
    y = torch.randint(HEIGHT, (count, 2)).sort(dim=1).values
    corners = torch.stack([x[:, 0], y[:, 0], x[:, 1] + 1, y[:, 1] + 1], dim=1)
    lines = [[0, 5, WIDTH, 6], [7, 0, 8, HEIGHT], [0, 0, WIDTH, 9], [3, 3, 4, 4]]
    whole = [[0, 0, WIDTH, HEIGHT], [10, 20, 10 + S, 20 + S], [0, 0, 100, 30], [0, 0, 30, 90]]
    return torch.cat([corners, torch.tensor(lines + whole)])


@pytest.mark.skipif(not PILLOW_13, reason="earlier Pillow resizes some tall crops otherwise")
@pytest.mark.parametrize("densely", [False, True])
@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize(
    "settings", [("crop", "bicubic"), ("squash", "bicubic"), ("crop", "bilinear")]
)
def test_crops_are_two_grey_levels_from_pil(densely, noise, settings):
    image, crops = photo(noise=noise), random_crops(150)
    preprocessing = ImagePreprocessing(S, resize=settings[0], interpolation=settings[1])
    found = resample_crops(image, crops, preprocessing, densely)
    expected = crops_by_pil(image, crops, preprocessing)
    assert found.dtype == torch.uint8 and found.shape == expected.shape == (len(crops), 3, S, S)
    assert (found.int() - expected.int()).abs().max() <= 2


def test_clip_itself_at_its_own_size():
    """The transform of package clip, 224 pixels, on boxes as a detector proposes them."""
    from clip.clip import _transform

    preprocessing = ImagePreprocessing(224)
    image, crops = photo(240, 320), random_crops(6)
    transform = _transform(224)
    expected = torch.stack([transform(as_pil(image).crop(crop)) for crop in crops.tolist()])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    grey_levels = (expected * std + mean) * 255
    found = resample_crops(image, crops, preprocessing)
    assert (found - grey_levels).abs().max() <= 2.01


def test_both_ways_agree_on_long_crops_of_any_place():
    """The part that a long crop's centre depends on is cut out right, at the borders too."""
    image = photo(noise=True)
    crops = torch.tensor(
        [[x, y, x + w, y + h] for w, h in ((120, 7), (20, 1), (3, 90), (9, 30), (139, 40))
         for x in (0, 1, WIDTH - w) for y in (0, HEIGHT - h)]
    )  # fmt: skip
    preprocessing = ImagePreprocessing(S)
    found = resample_crops(image, crops, preprocessing)
    whole = resample_crops(image, crops, preprocessing, densely=True)
    assert (found.int() - whole.int()).abs().max() <= 1


def test_a_line_as_long_as_an_image_needs_no_memory():
    """Resized whole, 1 x 20,000 pixels would be 224 x 4,480,000 x 3 = 3 GB."""
    image = photo(1, 20000)
    crop = torch.tensor([[0, 0, 20000, 1]])
    found = resample_crops(image, crop, ImagePreprocessing(224))
    middle = image[:, 0, 9999:10001].float()
    assert found.shape == (1, 3, 224, 224)
    assert torch.equal(found[0, :, 0], found[0, :, 223])
    assert (found[0, :, 0].float() >= middle.amin(dim=1)[:, None] - 2).all()
    assert (found[0, :, 0].float() <= middle.amax(dim=1)[:, None] + 2).all()


def test_dense_products_in_blocks(monkeypatch):
    from ovd_d2.encoders import crop_resampling

    image, crops, preprocessing = photo(), random_crops(5), ImagePreprocessing(S)
    whole = resample_crops(image, crops, preprocessing, densely=True)
    monkeypatch.setattr(crop_resampling, "_BLOCK_BYTES", 2 * 12 * S * (HEIGHT + WIDTH))
    assert torch.equal(resample_crops(image, crops, preprocessing, densely=True), whole)
    none = torch.zeros(0, 4, dtype=torch.int64)
    for densely in (False, True):
        assert resample_crops(image, none, preprocessing, densely).shape == (0, 3, S, S)


def plain_crop_pixels(box, scale, height, width):
    """ViLD's 1.5x box as its notes write it, rounded outward, cut at the border."""
    x0, y0, x1, y1 = map(float, box)
    if scale == 1.5:
        x0, x1 = 1.25 * x0 - 0.25 * x1, 1.25 * x1 - 0.25 * x0
        y0, y1 = 1.25 * y0 - 0.25 * y1, 1.25 * y1 - 0.25 * y0
    x0, y0 = max(math.floor(x0), 0), max(math.floor(y0), 0)
    return [x0, y0, min(math.ceil(x1), width), min(math.ceil(y1), height)]


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_enlarging_and_rounding(scale):
    corners = torch.rand(200, 2, 2).sort(dim=1).values.flatten(1)
    boxes = corners * torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT]) + torch.tensor([0, 0, 1, 1])
    boxes = (boxes * 4).round() / 4
    found = crop_pixels(boxes, scale, HEIGHT, WIDTH)
    assert found.tolist() == [plain_crop_pixels(box, scale, HEIGHT, WIDTH) for box in boxes]


@pytest.mark.parametrize(
    ("box", "crop"),
    [
        ([10, 20, 10, 20], [10, 20, 11, 21]),  # a point
        ([10.5, 20.5, 10.5, 20.5], [10, 20, 11, 21]),
        ([10, 20, 10, 40], [10, 20, 11, 40]),  # a line
        ([10.2, 20.2, 10.4, 20.3], [10, 20, 11, 21]),  # within a pixel
        ([WIDTH, HEIGHT, WIDTH, HEIGHT], [WIDTH - 1, HEIGHT - 1, WIDTH, HEIGHT]),
        ([-50, -60, -20, -30], [0, 0, 1, 1]),  # outside, by far: the nearest pixel
        ([500, 20, 600, 40], [WIDTH - 1, 20, WIDTH, 40]),
        ([20, -40, 60, -1e-3], [20, 0, 60, 1]),
        ([-1e30, -1e30, 1e30, 1e30], [0, 0, WIDTH, HEIGHT]),
        ([-0.5, -0.5, WIDTH + 0.5, HEIGHT + 0.5], [0, 0, WIDTH, HEIGHT]),
    ],
)
def test_hard_boxes(box, crop):
    assert crop_pixels(torch.tensor([box]), 1.0, HEIGHT, WIDTH).tolist() == [crop]
    grown = crop_pixels(torch.tensor([box], dtype=torch.float64), 1.5, HEIGHT, WIDTH)[0]
    assert (grown[:2] >= 0).all() and (grown[2:] > grown[:2]).all()
    assert grown[2] <= WIDTH and grown[3] <= HEIGHT


@pytest.fixture(scope="module")
def model():
    clip = tiny_models.openai_clip_model()

    class Text:
        encoder_id, dim = "tiny@0", 32

    return ImageTextModel(Text(), clip.encode_image, ImagePreprocessing(S))


def encode_plainly(model, image, boxes, scales):
    """One crop at a time; the raw outputs of a region's crops added, then normalised."""
    rows = []
    for box in boxes:
        total = 0
        for scale in scales:
            crop = crop_pixels(box[None], scale, *image.shape[-2:])
            pixels = resample_crops(image, crop, model.preprocessing)
            total = total + model.image_tower(model.preprocessing(pixels))[0]
        rows.append(total / total.norm())
    return torch.stack(rows) if rows else torch.zeros(0, model.dim)


@torch.no_grad()
@pytest.mark.parametrize("scales", [(1.0,), (1.0, 1.5)])
@pytest.mark.parametrize("batch", [1, 5, 32])
def test_embeddings_are_those_of_the_plain_way(model, scales, batch):
    images = [photo(), photo(50, 60), photo(20, 20), photo(33, 200, noise=True)]
    counts = (7, 0, 1, 4)
    boxes = [random_crops(20)[:count].float() - 0.3 for count in counts]
    encoder = CropRegionEncoder(model, scales, batch)
    assert encoder.crop_rule == ("1x" if len(scales) == 1 else "1x+1.5x")
    found = encoder.encode(images, boxes)
    for image, rows, embeddings, count in zip(images, boxes, found, counts):
        assert embeddings.shape == (count, 32) and embeddings.dtype == torch.float32
        expected = encode_plainly(model, image, rows, scales)
        torch.testing.assert_close(embeddings, expected, atol=2e-6, rtol=0)
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(count))


@torch.no_grad()
def test_the_outputs_are_added_before_they_are_normalised(model):
    image, boxes = photo(), torch.tensor([[20.0, 20, 80, 60]])
    once, grown = (CropRegionEncoder(model, (scale,)) for scale in (1.0, 1.5))
    both = CropRegionEncoder(model).encode([image], [boxes])[0]
    raw = []
    for encoder in (once, grown):
        crop = crop_pixels(boxes, encoder.scales[0], HEIGHT, WIDTH)
        raw.append(model.raw_image_features(resample_crops(image, crop, model.preprocessing)))
    torch.testing.assert_close(both, normalize(raw[0] + raw[1], dim=1), atol=1e-6, rtol=0)
    assert not torch.allclose(both, once.encode([image], [boxes])[0], atol=1e-4)


def test_embeddings_can_be_trained_against(model):
    """They are plain tensors, not inference tensors, which autograd refuses to save."""
    target = CropRegionEncoder(model).encode([photo()], [torch.tensor([[1.0, 1, 30, 30]])])[0]
    student = torch.randn(1, 32, requires_grad=True)
    (student * target).sum().backward()
    assert torch.equal(student.grad, target) and not target.requires_grad


def test_nothing_to_encode(model):
    encoder = CropRegionEncoder(model)
    assert encoder.encode([], []) == []
    (empty,) = encoder.encode([photo()], [torch.zeros(0, 4)])
    assert empty.shape == (0, 32)


BOX = torch.tensor([[1.0, 1, 5, 5]])
NAN = float("nan")


@pytest.mark.parametrize(
    ("images", "boxes", "message"),
    [
        ([photo()], [], "1 images come with boxes of 0"),
        ([photo().float()], [BOX], r"image 0 must be \(3, H, W\) uint8"),
        ([photo(), photo()[:1]], [BOX, BOX], r"image 1 must be \(3, H, W\) uint8"),
        ([photo()[:, :0]], [BOX], "image 0 must be"),
        ([photo()], [BOX[0]], r"boxes of image 0 must be \(Ri, 4\)"),
        ([photo(), photo()], [BOX, BOX * NAN], "boxes of image 1 must be finite"),
        ([photo()], [torch.tensor([[0, 0, float("inf"), 1]])], "boxes of image 0 must be finite"),
        ([photo()], [torch.tensor([[5.0, 0, 1, 1]])], "in the order x0, y0, x1, y1"),
    ],
)
def test_wrong_input_is_refused(model, images, boxes, message):
    with pytest.raises(OVDError, match=message):
        CropRegionEncoder(model).encode(images, boxes)


@pytest.mark.parametrize("arguments", [((),), ((1.0, 0.0),), ((1.0,), 0)])
def test_wrong_settings_are_refused(model, arguments):
    with pytest.raises(OVDError, match="must be positive|must be 1 or more"):
        CropRegionEncoder(model, *arguments)
