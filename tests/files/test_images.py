"""Every kind of picture becomes the same (H, W, 3) RGB bytes, or one sentence."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from random_models import make_pixels

from ovd_d2.data.mappers.detection import read_image
from ovd_d2.errors import OVDError
from ovd_d2.files.images import list_images, to_rgb

PIXELS = make_pixels(20, 30)
GREY = PIXELS[:, :, 0]


def save(path, image, **options):
    image.save(path, **options)
    return path


def test_files_pil_arrays_and_tensors_agree(tmp_path):
    pil = Image.fromarray(PIXELS)
    kinds = {
        "file": save(tmp_path / "a.png", pil),
        "file name": str(tmp_path / "a.png"),
        "bmp": save(tmp_path / "a.bmp", pil),
        "pil": pil,
        "bgr": np.ascontiguousarray(PIXELS[:, :, ::-1]),
        "bgr view": PIXELS[:, :, ::-1],
        "bgr tensor": torch.from_numpy(PIXELS[:, :, ::-1].transpose(2, 0, 1).copy()),
    }
    for kind, picture in kinds.items():
        assert np.array_equal(to_rgb(picture), PIXELS), kind
    for kind in ("file", "pil"):  # they know their order
        assert np.array_equal(to_rgb(kinds[kind], input_format="RGB"), PIXELS), kind
    rgb_tensor = torch.from_numpy(PIXELS.transpose(2, 0, 1).copy())
    for picture in (PIXELS, rgb_tensor):
        assert np.array_equal(to_rgb(picture, input_format="RGB"), PIXELS)
        assert not np.array_equal(to_rgb(picture), PIXELS)


def test_the_result_shares_no_memory():
    array = PIXELS.copy()
    rgb = to_rgb(array, input_format="RGB")
    rgb[:] = 0
    assert np.array_equal(array, PIXELS)


def test_grey_of_every_kind(tmp_path):
    wide = GREY.astype(np.uint16) * 256 + 17
    wanted = np.repeat(GREY[:, :, None], 3, axis=2)
    for picture in (
        GREY,
        GREY[:, :, None],
        wide,
        torch.from_numpy(GREY.copy())[None],
        Image.fromarray(GREY),
        save(tmp_path / "grey.png", Image.fromarray(GREY)),
        save(tmp_path / "wide.png", Image.fromarray(wide)),
        save(tmp_path / "wide.tif", Image.fromarray(wide)),
        Image.fromarray(wide.astype(np.int32)),
    ):
        assert np.array_equal(to_rgb(picture), wanted), picture
    bits = save(tmp_path / "bits.png", Image.fromarray(GREY > 128))
    assert np.array_equal(to_rgb(bits)[:, :, 1], np.where(GREY > 128, 255, 0))


def test_sixteen_bit_colours():
    assert np.array_equal(to_rgb(PIXELS[:, :, ::-1].astype(np.uint16) << 8), PIXELS)


def test_what_is_transparent_is_white(tmp_path):
    alpha = np.zeros((20, 30, 1), np.uint8)
    alpha[:10] = 255
    rgba = np.concatenate([PIXELS, alpha], axis=2)
    wanted = PIXELS.copy()
    wanted[10:] = 255
    bgra = rgba[:, :, [2, 1, 0, 3]]
    for picture in (
        Image.fromarray(rgba),
        save(tmp_path / "alpha.png", Image.fromarray(rgba)),
        bgra,
        torch.from_numpy(bgra.transpose(2, 0, 1).copy()),
    ):
        assert np.array_equal(to_rgb(picture), wanted)
    grey = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha[:, :, 0])])
    assert np.array_equal(to_rgb(grey)[:10, :, 0], GREY[:10])
    assert (to_rgb(grey)[10:] == 255).all()


def test_palettes(tmp_path):
    four = Image.new("P", (2, 2))
    four.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    four.putdata([0, 1, 2, 3])
    plain = save(tmp_path / "plain.png", four)
    assert to_rgb(plain).reshape(-1, 3).tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [9] * 3]
    hole = save(tmp_path / "hole.png", four, transparency=3)
    assert to_rgb(hole).reshape(-1, 3).tolist()[3] == [255] * 3


def test_other_colour_spaces_and_animations(tmp_path):
    cmyk = Image.new("CMYK", (3, 2), (0, 255, 255, 0))
    assert to_rgb(cmyk)[0, 0].tolist() == [255, 0, 0]
    first, second = Image.new("L", (3, 2), 10), Image.new("L", (3, 2), 200)
    movie = save(tmp_path / "a.gif", first, save_all=True, append_images=[second])
    assert (to_rgb(movie) == 10).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", Image.fromarray(PIXELS), exif=exif)
    turned = {
        1: PIXELS, 2: PIXELS[:, ::-1], 3: PIXELS[::-1, ::-1], 4: PIXELS[::-1],
        5: PIXELS.transpose(1, 0, 2), 6: np.rot90(PIXELS, -1),
        7: PIXELS[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(PIXELS),
    }[orientation]  # fmt: skip
    assert np.array_equal(to_rgb(path), turned)
    with Image.open(path) as image:
        assert np.array_equal(to_rgb(image), turned)


BAD = {
    "float": (PIXELS / 255.0, "float64"),
    "bool": (GREY > 3, "bool"),
    "channels first": (PIXELS.transpose(2, 0, 1), "channels last"),
    "batch": (PIXELS[None], r"\(1, 20, 30, 3\)"),
    "empty": (PIXELS[:0], r"\(0, 30, 3\)"),
    "tensor, channels last": (torch.from_numpy(PIXELS), r"\(20, 30, 3\)"),
    "tensor batch": (torch.zeros(2, 3, 4, 5, dtype=torch.uint8), "one tensor each"),
    "float tensor": (torch.zeros(3, 4, 5), "float32"),
    "sparse tensor": (torch.zeros(3, 4, 5, dtype=torch.uint8).to_sparse(), "sparse.*to_dense"),
    "meta tensor": (torch.zeros(3, 4, 5, dtype=torch.uint8, device="meta"), "device meta"),
    "bfloat16 tensor": (torch.zeros(3, 4, 5, dtype=torch.bfloat16), "type bfloat16"),
    "nested tensor": (
        torch.nested.nested_tensor([torch.zeros(3, 4, 5)], layout=torch.jagged),
        "nested",
    ),
    "a number": (7, "int is no picture"),
    "none": (None, "NoneType is no picture"),
    "float image": (Image.new("F", (3, 3)), "floating-point"),
    "missing": ("nowhere.jpg", "There is no image nowhere.jpg"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_pictures_are_one_sentence(case):
    picture, sentence = BAD[case]
    with pytest.raises(OVDError, match=sentence) as error:
        to_rgb(picture)
    assert "\n" not in str(error.value)


def test_unknown_colour_order():
    with pytest.raises(OVDError, match="input_format is 'HSV'"):
        to_rgb(PIXELS, input_format="HSV")


def test_broken_files_are_named(tmp_path):
    whole = save(tmp_path / "whole.jpg", Image.fromarray(make_pixels(100, 100)))
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[:1000])
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "program.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for name in ("cut.jpg", "text.png", "empty.png", "program.eps"):
        with pytest.raises(OVDError, match=f"Cannot use the image .*{name}"):
            to_rgb(tmp_path / name)
    with pytest.raises(OVDError, match="Cannot use the image"):
        to_rgb(tmp_path)


def test_pipes_and_devices_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero"):
        with pytest.raises(OVDError, match="it is no plain file but a pipe or a device"):
            to_rgb(path)
        with pytest.raises(OVDError, match="it is no plain file but a pipe or a device"):
            read_image(str(path), "RGB")


def test_huge_files_are_refused_before_decoding(tmp_path, monkeypatch):
    path = save(tmp_path / "huge.png", Image.new("1", (2000, 1000)))
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    with pytest.raises(OVDError, match=r"huge\.png: 2000 x 1000 pixels .* INPUT\.MAX_PIXELS"):
        to_rgb(path, max_pixels=1_999_999)


def test_list_images(tmp_path):
    with pytest.raises(OVDError, match="holds no image"):
        list_images(tmp_path)
    for name in ("b.JPG", "a.png", "notes.txt", ".hidden.png"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.png", "b.JPG"]
    assert list_images(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]
    with pytest.raises(OVDError, match="There is no image"):
        list_images(tmp_path / "c.png")
