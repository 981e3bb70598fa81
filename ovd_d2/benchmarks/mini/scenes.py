"""Composes one image: background, clutter, objects with exact visible masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from ovd_d2.benchmarks.mini.backgrounds import draw_background
from ovd_d2.data.datasets.mini.categories import load_categories, load_clutter
from ovd_d2.data.datasets.mini.splits import IMAGE_SIZE, Split, rng_for
from ovd_d2.errors import OVDError

OBJECT_SIZE = (30.0, 84.0)  # pixels of the longer side before rotation
MIN_VISIBLE_FRACTION = 0.45  # of the object's pixels; what later objects hide counts
MIN_VISIBLE_PIXELS = 90
_TRIES = 60
_CROSS = np.array([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]])
_TEXT = (
    "open sale menu exit north hello stop here free today news week plan step zone level "
    "west blue green fast slow 24h 100 7 42 2024 A1 OK no yes go up"
)
_WORDS = _TEXT.split()


@dataclass
class SceneObject:
    """One labelled object. ``mask`` (192, 192) bool is what is visible of it in the end."""

    category: int
    style: str
    full_area: int
    mask: np.ndarray


@dataclass
class Scene:
    """``pixels`` (192, 192, 3) uint8 RGB; ``place`` says in words what the background is."""

    pixels: np.ndarray
    objects: list[SceneObject]
    place: str


def compose_scene(
    split: Split,
    image_id: int,
    categories: tuple[int, ...],
    sprites: dict[str, np.ndarray],
    photos: list[np.ndarray],
) -> Scene:
    """Draws one image; depends on nothing but its arguments and the benchmark's seed.

    Args:
        categories: contiguous category index of each object, drawn from back to front.
        sprites: "style/codepoints" -> (h, w, 4) uint8 RGBA.
        photos: of ``split.backgrounds``, see ``load_photos``.

    Returns:
        a scene in which every given category has a visible object.
    """
    rng = rng_for("scene", split.name, image_id)
    background, place = draw_background(rng, split.backgrounds, photos)
    canvas = Image.fromarray(np.clip(background, 0, 255).astype(np.uint8))
    for _ in range(int(rng.integers(0, 4))):
        _draw_clutter(rng, canvas, split, sprites, [])
    objects: list[SceneObject] = []
    for category in categories:
        style = split.styles[int(rng.integers(len(split.styles)))]
        sprite = sprites[f"{style}/{load_categories()[category].codepoints}"]
        objects.append(_place_object(rng, canvas, category, style, sprite, objects))
    for _ in range(int(rng.integers(0, 3))):
        _draw_clutter(rng, canvas, split, sprites, objects)
    return Scene(_photographed(rng, canvas), objects, place)


def _place_object(
    rng: np.random.Generator,
    canvas: Image.Image,
    category: int,
    style: str,
    sprite: np.ndarray,
    earlier: list[SceneObject],
) -> SceneObject:
    """Pastes one object where it and all earlier ones stay visible enough."""
    size = float(np.exp(rng.uniform(*np.log(OBJECT_SIZE))))
    picture = _recoloured(rng, Image.fromarray(sprite))
    for attempt in range(_TRIES):
        shrink = 0.93 ** (attempt // 4)
        turned = _deformed(rng, picture, max(size * shrink, 22.0))
        pasted, corner = _random_position(rng, turned)
        opaque = np.asarray(turned.getchannel("A")) >= 128
        full_area = np.count_nonzero(opaque)
        mask = _pasted(opaque, corner)
        enough = max(MIN_VISIBLE_FRACTION * full_area, min(MIN_VISIBLE_PIXELS, 0.9 * full_area))
        if np.count_nonzero(mask) >= enough and _all_visible(earlier, mask):
            canvas.paste(pasted, corner, turned.getchannel("A"))
            for other in earlier:
                other.mask &= ~mask
            return SceneObject(category, style, full_area, mask)
    raise OVDError(f"no room for an object of category {category}: the sprites are too large")


def _pasted(opaque: np.ndarray, corner: tuple[int, int]) -> np.ndarray:
    """An (h, w) mask at its place in the image, cut at the border, (192, 192) bool."""
    x, y = corner
    h, w = opaque.shape
    mask = np.zeros((IMAGE_SIZE, IMAGE_SIZE), bool)
    part = opaque[max(-y, 0) : IMAGE_SIZE - y, max(-x, 0) : IMAGE_SIZE - x]
    mask[max(y, 0) : y + h, max(x, 0) : x + w] = part
    return mask


def _all_visible(objects: list[SceneObject], cover: np.ndarray) -> bool:
    """Whether every object still shows enough when ``cover`` (192, 192) bool hides it."""
    for other in objects:
        hidden = np.count_nonzero(other.mask & cover)
        left = np.count_nonzero(other.mask) - hidden
        if hidden and left < max(MIN_VISIBLE_FRACTION * other.full_area, MIN_VISIBLE_PIXELS):
            return False
    return True


def _recoloured(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """Small shifts of hue, saturation, contrast and brightness; alpha stays."""
    # One 3 x 4 matrix: rotation about the grey axis, scaled, then contrast and brightness.
    angle, saturation = rng.uniform(-0.2, 0.2), rng.uniform(0.7, 1.2)
    contrast, brightness = rng.uniform(0.8, 1.15), rng.uniform(-22, 22)
    turn = np.cos(angle) * (np.eye(3) - 1 / 3) + np.sin(angle) / np.sqrt(3) * _CROSS
    matrix = contrast * (1 / 3 + saturation * turn)
    offset = np.full((3, 1), 128 * (1 - contrast) + brightness)
    result = picture.convert("RGB").convert("RGB", np.hstack([matrix, offset]).ravel().tolist())
    result.putalpha(picture.getchannel("A"))
    return result


def _deformed(rng: np.random.Generator, picture: Image.Image, size: float) -> Image.Image:
    """Scaled to ``size`` pixels, stretched, mirrored and turned; cut to what is visible."""
    scale = size / max(picture.size)
    stretch = rng.uniform(0.88, 1.14)
    width = max(4, round(picture.width * scale * stretch))
    height = max(4, round(picture.height * scale / stretch))
    picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    angle = rng.uniform(-180, 180) if rng.random() < 0.1 else rng.normal(0, 12)
    # Premultiplied, so that the colour of invisible pixels does not bleed in at the border.
    turned = picture.convert("RGBa").rotate(angle, Image.Resampling.BICUBIC, expand=True)
    picture = turned.convert("RGBA")
    return picture.crop(picture.getchannel("A").getbbox())


def _random_position(
    rng: np.random.Generator, picture: Image.Image
) -> tuple[Image.Image, tuple[int, int]]:
    """The picture without alpha, and its top left corner; up to 15% lies outside the image."""
    margin = [0.15 * side for side in picture.size]
    corner = [
        int(round(rng.uniform(-m, max(IMAGE_SIZE - side + m, -m + 1))))
        for side, m in zip(picture.size, margin, strict=True)
    ]
    return picture.convert("RGB"), (corner[0], corner[1])


def _draw_clutter(
    rng: np.random.Generator,
    canvas: Image.Image,
    split: Split,
    sprites: dict[str, np.ndarray],
    objects: list[SceneObject],
) -> None:
    """Adds one unlabelled thing; skipped when it would hide one of ``objects`` too much."""
    layer = Image.new("RGBA", canvas.size)
    choice = rng.random()
    if choice < 0.4:
        _draw_shape(rng, layer, thin=bool(objects))
    elif choice < 0.65:
        _draw_text(rng, layer)
    else:
        codes = load_clutter()[split.backgrounds]
        style = split.styles[int(rng.integers(len(split.styles)))]
        sprite = Image.fromarray(sprites[f"{style}/{codes[int(rng.integers(len(codes)))]}"])
        turned = _deformed(rng, _recoloured(rng, sprite), rng.uniform(16, 40 if objects else 64))
        _, corner = _random_position(rng, turned)
        layer.paste(turned, corner)
    mask = np.asarray(layer.getchannel("A")) >= 128
    if _all_visible(objects, mask):
        canvas.paste(layer.convert("RGB"), (0, 0), layer.getchannel("A"))
        for other in objects:
            other.mask &= ~mask


def _draw_shape(rng: np.random.Generator, layer: Image.Image, *, thin: bool) -> None:
    """A line, ellipse, polygon or rectangle; ``thin`` ones only when they lie on top."""
    draw = ImageDraw.Draw(layer)
    colour = (*(int(c) for c in rng.integers(0, 256, 3)), 255)
    x, y = rng.uniform(0, IMAGE_SIZE, 2)
    w, h = rng.uniform(8, 30 if thin else 80, 2)
    kind = int(rng.integers(4))
    if kind == 0:
        end = tuple(rng.uniform(0, IMAGE_SIZE, 2))
        draw.line([(x, y), end], fill=colour, width=int(rng.integers(1, 4 if thin else 7)))
    elif kind == 1:
        outline = int(rng.integers(1, 6))
        fill = None if rng.random() < 0.4 else colour
        draw.ellipse([x - w / 2, y - h / 2, x + w / 2, y + h / 2], fill, colour, outline)
    elif kind == 2:
        corners = int(rng.integers(3, 7))
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        points = [(x + w / 2 * np.cos(a), y + h / 2 * np.sin(a)) for a in angles]
        draw.polygon(points, fill=colour)
    else:
        draw.rectangle([x - w / 2, y - h / 2, x + w / 2, y + h / 2], fill=colour)


def _draw_text(rng: np.random.Generator, layer: Image.Image) -> None:
    font = ImageFont.load_default(size=int(rng.integers(9, 26)))
    word = _WORDS[int(rng.integers(len(_WORDS)))]
    colour = (*(int(c) for c in rng.integers(0, 256, 3)), 255)
    position = tuple(rng.uniform(-10, IMAGE_SIZE - 20, 2))
    ImageDraw.Draw(layer).text(position, word, fill=colour, font=font)


def _photographed(rng: np.random.Generator, canvas: Image.Image) -> np.ndarray:
    """The canvas with a little blur, exposure and noise, (192, 192, 3) uint8."""
    if rng.random() < 0.4:
        canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.9)))
    pixels = np.asarray(canvas, np.float32)
    pixels = (pixels - 128) * rng.uniform(0.9, 1.1) + 128 + rng.uniform(-12, 12)
    if rng.random() < 0.5:
        noise = rng.standard_normal(pixels.shape, np.float32)
        pixels = pixels + noise * np.float32(rng.uniform(1, 6))
    return np.clip(pixels, 0, 255).astype(np.uint8)
