"""Any kind of picture -> (H, W, 3) uint8 RGB: the reader of training, evaluation and prediction.

| in the picture | what is read |
|---|---|
| EXIF orientation | applied, to files and PIL images |
| transparency (RGBA, LA, palettes) | on white |
| 16 bits (grey: PNG, TIFF) | the upper 8: ``value >> 8``, so 32768 is 128, and all below 256 is 0 |
| grey, 1 bit, palettes | R = G = B; 0 and 255; looked up |
| CMYK, YCbCr | converted by Pillow |
| gamma, colour profiles | ignored |
| animations | the first frame |
| floating point, 16 bits out of 0..65535 | refused: nothing says their range |

The content tells the format, not the suffix. An RGB or grey file gives the bits that Detectron2's
``read_image`` gives.

Letters: H, W height and width of the picture as a viewer shows it.
"""

import io
import os
import warnings
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from detectron2.data.detection_utils import _apply_exif_orientation
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import is_special_file

# A file, a PIL image, or an array (H, W), (H, W, 1 | 3 | 4) or tensor (1 | 3 | 4, H, W) of uint8 or
# uint16.
Picture: TypeAlias = str | os.PathLike | Image.Image | np.ndarray | torch.Tensor
# What is taken for an image in a folder, a list of pairs, a tar file.
SUFFIXES = (".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff",
            ".webp")  # fmt: skip
MAX_PIXELS = 50_000_000  # of a file, where INPUT.MAX_PIXELS has no say; it is that key's default
COLOUR_ORDERS = ("BGR", "RGB")
# What Pillow may take a file for; of the others some start programs (EPS: Ghostscript).
FILE_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # MAX_PIXELS decides


class UnreadableImageError(OVDError):
    """An image that is missing, corrupt, too large, or not of the annotated size.

    Attributes:
        file_name: the image.
        reason: what is wrong with it, without the file name.
    """

    def __init__(self, message: str, file_name: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.file_name = file_name
        self.reason = reason

    @classmethod
    def of(cls, file_name: str, reason: str, remedy: str = "") -> "UnreadableImageError":
        """The error of ``file_name``; ``remedy``: a sentence to end with."""
        return cls(
            f"Cannot use the image {file_name}: {reason}. {remedy}".rstrip(), file_name, reason
        )


def to_rgb(
    picture: Picture, *, input_format: str = "BGR", max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """The pixels of ``picture``, as the table above says.

    Args:
        picture: see :data:`Picture`.
        input_format: "BGR" (OpenCV, Detectron2) or "RGB": colour order of arrays and tensors.
            Files and PIL images know their own.
        max_pixels: see :func:`read_image`.

    Returns:
        (H, W, 3) uint8, RGB, contiguous, sharing no memory with ``picture``.

    Raises:
        OVDError: naming the file and what is wrong with it, or what is wrong with the array.
    """
    if input_format not in COLOUR_ORDERS:
        raise OVDError(f'input_format is {input_format!r}; it must be "BGR" or "RGB".')
    if isinstance(picture, str | os.PathLike):
        return read_image(picture, max_pixels=max_pixels)
    if isinstance(picture, Image.Image):
        try:
            return _from_pil(picture)
        except Exception as error:  # decoding is lazy: broken files show here
            raise OVDError(f"Cannot use the PIL image: {_reason(error)}.") from error
    if isinstance(picture, torch.Tensor):
        if picture.is_nested:
            raise OVDError("The tensor is nested; give a list of pictures, one tensor each.")
        if picture.dim() != 3 or picture.shape[0] not in (1, 3, 4):
            raise OVDError(
                f"The tensor has shape {tuple(picture.shape)}; pictures are (3, H, W), or "
                "(1 | 4, H, W), one tensor each."
            )
        _check_tensor(picture)
        picture = picture.detach().cpu().permute(1, 2, 0).numpy()
    if isinstance(picture, np.ndarray):
        return _from_array(picture, input_format)
    raise OVDError(
        f"A {type(picture).__name__} is no picture: give a file, a PIL image, an array (H, W, 3) "
        "or a tensor (3, H, W)."
    )


def _check_tensor(picture: torch.Tensor) -> None:
    """Raises OVDError for tensors whose pixels numpy cannot read."""
    if picture.layout != torch.strided:
        raise OVDError("The tensor is sparse; give a dense one (to_dense).")
    if picture.is_meta:
        raise OVDError("The tensor is on the device meta, which holds no pixels; give its values.")
    if picture.dtype not in (torch.uint8, torch.uint16):
        raise _wrong_type(str(picture.dtype).removeprefix("torch."))


def _wrong_type(found: str) -> OVDError:
    return OVDError(
        f"The pixels are of type {found}; give uint8 in 0..255 (or uint16), so that there is no "
        "doubt about their range."
    )


def list_images(path: str | os.PathLike) -> list[Path]:
    """A file itself, or the pictures that lie directly in a folder, sorted by name.

    Raises:
        OVDError: nothing there, or no picture in the folder.
    """
    path = Path(path)
    if not path.is_dir():
        if not path.exists():
            raise OVDError(f"There is no image {path}.")
        return [path]
    found = sorted(
        file
        for file in path.iterdir()
        if file.suffix.lower() in SUFFIXES and file.is_file() and not file.name.startswith(".")
    )
    if not found:
        raise OVDError(f"The folder {path} holds no image ({', '.join(SUFFIXES)}).")
    return found


def read_image(
    path: str | os.PathLike,
    *,
    max_pixels: int = MAX_PIXELS,
    content: bytes | None = None,
    remedy: str = "",
) -> np.ndarray:
    """The pixels of an image file, as the table above says.

    Args:
        path: anything Detectron2's ``PathManager`` opens.
        max_pixels: larger images are refused before they are decoded; 0: no limit.
        content: the file's bytes, where ``path`` only names it.
        remedy: a sentence that errors end with.

    Returns:
        (H, W, 3) uint8, RGB, contiguous.

    Raises:
        UnreadableImageError: naming the file and the reason.
    """
    path = os.fspath(path)
    try:
        if content is None and is_special_file(path):
            raise _UnusableError("it is no plain file but a pipe or a device")
        Image.init()  # knows all formats from here on
        formats = [name for name in FILE_FORMATS if name in Image.OPEN]
        with PathManager.open(path, "rb") if content is None else io.BytesIO(content) as file:
            image = Image.open(file, formats=formats)
            width, height = image.size
            if max_pixels and width * height > max_pixels:
                raise _UnusableError(
                    f"{width} x {height} pixels are more than INPUT.MAX_PIXELS = {max_pixels}; "
                    "make it smaller or raise the limit"
                )
            return _from_pil(image)
    except FileNotFoundError:
        reason = "there is no such file"
        if not remedy:
            raise UnreadableImageError(f"There is no image {path}.", path, reason) from None
        raise UnreadableImageError.of(path, reason, remedy) from None
    except UnidentifiedImageError:
        reason = f"UnidentifiedImageError: it is none of {', '.join(formats)}"
        raise UnreadableImageError.of(path, reason, remedy) from None
    except Exception as error:  # decoders raise anything on broken data
        raise UnreadableImageError.of(path, _reason(error), remedy) from error


class _UnusableError(ValueError):
    """An image that is intact, but of no use."""


def _reason(error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0].rstrip(".")
    return text if isinstance(error, _UnusableError) else f"{type(error).__name__}: {text}"


def _from_pil(image: Image.Image) -> np.ndarray:
    if min(image.size) < 1:
        raise _UnusableError("it has no pixels")
    image.load()  # of a TIFF, this applies the orientation already, and forgets it
    image = _apply_exif_orientation(image)
    if image.mode.startswith("I"):  # "I;16" and its byte orders; "I": 16 bits in 32
        return _from_array(_to_uint16(np.asarray(image)), "RGB")
    if image.mode == "F":
        raise _UnusableError("it holds floating-point numbers; convert it to 8 bits first")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def _to_uint16(values: np.ndarray) -> np.ndarray:
    if values.min() < 0 or values.max() > 65535:
        raise _UnusableError("it holds values outside of 0..65535; convert it to 8 bits first")
    return values.astype(np.uint16)


def _from_array(array: np.ndarray, input_format: str) -> np.ndarray:
    shape = array.shape
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or array.size == 0:
        hint = "; put the channels last" if array.ndim == 3 and shape[0] in (1, 3, 4) else ""
        raise OVDError(
            f"The array has shape {shape}; pictures are (H, W, 3), (H, W), or (H, W, 1 | 4){hint}."
        )
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    if array.dtype != np.uint8:
        raise _wrong_type(str(array.dtype))
    if array.shape[2] == 1:
        return np.repeat(array, 3, axis=2)
    colours = array[:, :, :3]
    if input_format == "BGR":
        colours = colours[:, :, ::-1]
    if array.shape[2] == 3:
        return np.array(colours)  # a copy
    rgba = np.ascontiguousarray(np.concatenate([colours, array[:, :, 3:]], axis=2))
    return _from_pil(Image.fromarray(rgba))
