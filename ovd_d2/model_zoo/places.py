"""Where the files of the model zoo lie: below ``$OVD_D2_CACHE/models``, or
``~/.cache/ovd_d2/models``.

``downloads/HOST/PATH`` is a file as it came, ``NAME`` the folder of a model that is ready.
"""

import os
from pathlib import Path
from urllib.parse import urlsplit

from .entries import Entry

EMBEDDINGS = "class_embeddings.safetensors"  # of a detector, beside its weights
_CLIP = "openai-clip"  # whose package looks in a folder of its own


def models_folder() -> Path:
    """The folder of everything here."""
    cache = os.environ.get("OVD_D2_CACHE") or "~/.cache/ovd_d2"
    return Path(cache).expanduser() / "models"


def model_path(entry: Entry) -> Path:
    """The folder of a model that is ready, existing or not."""
    return models_folder() / entry.name


def download_path(entry: Entry) -> Path:
    """Where the file lies when it is downloaded, or is to be put by hand; of equal names from two
    hosts, or of two models of one page, there are two."""
    if entry.system == _CLIP:
        return Path("~/.cache/clip").expanduser() / entry.file_name
    parts = urlsplit(entry.where)
    path = parts.path.strip("/").split("/")[:-1] if entry.url else [entry.name]
    return models_folder().joinpath("downloads", parts.netloc, *path, entry.file_name)


def state(entry: Entry) -> str:
    """ "ships", "converted", "downloaded", or "" where it is not here or cannot be told (hub)."""
    if entry.packaged:
        return "ships"
    if entry.converter and model_path(entry).is_dir():
        return "converted"
    return "downloaded" if not entry.hub and download_path(entry).is_file() else ""


def convert_command(entry: Entry) -> str:
    """What converts the file by hand; "" if nothing does."""
    if not entry.converter:
        return ""
    words = ["ovd convert", entry.converter, entry.file_name or "FOLDER"]
    words += ["--out", f"{entry.name}.safetensors"]
    if entry.converter in ("detic", "object-centric-ovd"):
        words += ["--embeddings", f"{entry.name}_{EMBEDDINGS}"]
        words += ["--vocabulary", entry.vocabulary] if entry.vocabulary else []
    return " ".join(words)
