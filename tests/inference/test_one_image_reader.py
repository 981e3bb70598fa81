"""The same file has the same pixels in training, evaluation, prediction and region stores."""

import numpy as np
import pytest
from detectron2.data import detection_utils
from PIL import Image, TiffImagePlugin
from PIL.PngImagePlugin import PngInfo
from random_models import make_pixels

from ovd_d2.config_file import load_config
from ovd_d2.data.mappers.detection import OpenVocabDatasetMapper
from ovd_d2.data.mappers.image_text_pairs import read_shard_image
from ovd_d2.data.prefetch import read_record
from ovd_d2.files.images import MAX_PIXELS, UnreadableImageError
from ovd_d2.inference import OpenVocabPredictor

PIXELS = make_pixels(20, 30)
GREY = PIXELS[:, :, 0]
HALF = np.where(np.arange(20)[:, None] < 10, 255, 0).repeat(30, 1).astype(np.uint8)  # alpha
RGB = Image.fromarray(PIXELS)
CLEAR = Image.fromarray(np.dstack([PIXELS, HALF]))
ON_WHITE = np.where(HALF[:, :, None] == 255, PIXELS, 255)
GREY_ON_WHITE = np.where(HALF == 255, GREY, 255)
INDICES = (np.indices((20, 30)).sum(0) % 4).astype(np.uint8)
COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], np.uint8)
WIDE = np.full((20, 30), 32768, np.uint16)
WIDE[0] = np.arange(30) * 2000


def palette():
    image = Image.fromarray(INDICES)
    image.putpalette(COLOURS.ravel().tolist())
    return image


def grey(values):
    return np.repeat(np.asarray(values, np.uint8)[:, :, None], 3, axis=2)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


def gamma():
    info = PngInfo()
    info.add(b"gAMA", (20000).to_bytes(4, "big"))
    return {"pnginfo": info}


def tiff_orientation(orientation):
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[0x0112] = orientation
    return {"tiffinfo": info}


MOVIE = {"save_all": True, "append_images": [Image.new("P", (30, 20), 1)]}
# Name: (image, how it is saved, its pixels; None: lossy, those that Detectron2's reader gives).
FILES = {
    "plain.png": (RGB, {}, PIXELS),
    "plain.bmp": (RGB, {}, PIXELS),
    "plain.ppm": (RGB, {}, PIXELS),
    "lossless.webp": (RGB, {"lossless": True}, PIXELS),
    "lossy.webp": (RGB, {}, None),
    "plain.jpg": (RGB, {}, None),
    "progressive.jpg": (RGB, {"progressive": True}, None),
    "grey.jpg": (Image.fromarray(GREY), {}, None),
    "cmyk.jpg": (RGB.convert("CMYK"), {}, None),
    "wrong_suffix.png": (RGB, {"format": "JPEG"}, None),
    "wrong_suffix.jpg": (CLEAR, {"format": "PNG"}, ON_WHITE),
    "plain.jp2": (RGB, {}, PIXELS),
    "exif_3.jpg": (RGB, turned(3), None),
    "exif_6.jpg": (RGB, turned(6), None),
    "exif_8.jpg": (RGB, turned(8), None),
    "exif_6.png": (RGB, turned(6), np.rot90(PIXELS, -1)),
    "exif_6.tif": (RGB, tiff_orientation(6), np.rot90(PIXELS, -1)),
    "transparent.png": (CLEAR, {}, ON_WHITE),
    "transparent.tif": (CLEAR, {}, ON_WHITE),
    "transparent.webp": (CLEAR, {"lossless": True}, ON_WHITE),
    "all_transparent.png": (Image.new("RGBA", (30, 20)), {}, np.full_like(PIXELS, 255)),
    "half_transparent.png": (
        Image.new("RGBA", (30, 20), (0, 0, 0, 128)), {}, np.full_like(PIXELS, 127)
    ),
    "grey_transparent.png": (
        Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(HALF)]), {}, grey(GREY_ON_WHITE)
    ),
    "palette.png": (palette(), {}, COLOURS[INDICES]),
    "palette_transparent.png": (
        palette(), {"transparency": 3}, np.where(INDICES[..., None] == 3, 255, COLOURS[INDICES])
    ),
    "colour_key.png": (
        Image.fromarray(COLOURS[INDICES]), {"transparency": (9, 9, 9)},
        np.where(INDICES[..., None] == 3, 255, COLOURS[INDICES]),
    ),
    "bits.png": (Image.fromarray(GREY > 128), {}, grey(np.where(GREY > 128, 255, 0))),
    "wide.png": (Image.fromarray(WIDE), {}, grey(WIDE >> 8)),
    "wide.tif": (Image.fromarray(WIDE), {}, grey(WIDE >> 8)),
    "wide_but_low.png": (Image.fromarray(GREY.astype(np.uint16)), {}, np.zeros_like(PIXELS)),
    "gamma.png": (RGB, gamma(), PIXELS),
    "movie.gif": (palette(), MOVIE, COLOURS[INDICES]),
}  # fmt: skip


@pytest.fixture(scope="module")
def predictor(config, checkpoint):
    return OpenVocabPredictor(config, checkpoint, device="cpu")


@pytest.fixture(params=("mapper, training", "mapper, evaluation", "prediction", "region store",
                        "tar shard"))  # fmt: skip
def door(request, predictor):
    """File -> (H, W, 3) uint8 RGB, by one of the ways in."""

    def mapper(path):
        kind = OpenVocabDatasetMapper(
            request.param.endswith("training"), augmentations=[], image_format="BGR"
        )
        return kind({"file_name": str(path)})["image"].flip(0).permute(1, 2, 0).numpy()

    def tar_shard(path):
        place = (str(path), 0, path.stat().st_size)
        return read_shard_image({"file_name": "shard/a", "shard": place}, "RGB", MAX_PIXELS)

    def predict(path):
        (found,) = predictor.stream(path)
        assert found.instances.image_size == found.image.shape[:2]
        return found.image

    def region_store(path):
        return read_record({"file_name": str(path)}).permute(1, 2, 0).numpy()

    return {"prediction": predict, "region store": region_store, "tar shard": tar_shard}.get(
        request.param, mapper
    )


@pytest.mark.parametrize("name", FILES)
def test_every_door_gives_the_documented_pixels(door, tmp_path, name):
    image, how, wanted = FILES[name]
    image.save(tmp_path / name, **how)
    found = door(tmp_path / name)
    if wanted is None:
        wanted = detection_utils.read_image(str(tmp_path / name), "RGB")
    assert found.dtype == np.uint8 and found.shape == wanted.shape
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    "name, image, reason",
    [
        ("float.tif", Image.new("F", (30, 20)), "it holds floating-point numbers"),
        ("far.tif", Image.new("I", (30, 20), 70000), "it holds values outside of 0..65535"),
        ("huge.png", Image.new("1", (8000, 7000)), "56000000 pixels|INPUT.MAX_PIXELS"),
    ],
)
def test_every_door_refuses_the_same(door, tmp_path, name, image, reason):
    image.save(tmp_path / name)
    with pytest.raises(UnreadableImageError, match=f"Cannot use the image .*({reason})"):
        door(tmp_path / name)


def test_the_cap_is_the_default_of_the_key():
    assert load_config().INPUT.MAX_PIXELS == MAX_PIXELS
