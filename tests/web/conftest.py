"""A random detector behind the page and the endpoints."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "inference"))

from random_label_maps import label_map_checkpoint, label_map_config, label_map_model
from random_models import checkpoint, config, exported, text_cache, text_cache_folder
from small_uploads import LIMITS

__all__ = [
    "checkpoint", "config", "exported", "label_map_checkpoint", "label_map_config",
    "label_map_model", "text_cache", "text_cache_folder",
]  # fmt: skip
PACKAGES = ("fastapi", "uvicorn", "gradio", "gradio_image_annotation", "httpx")


@pytest.fixture(scope="package")
def served(exported):
    """Two models: the second is the first again."""
    from ovd_d2.web.served_model import ServedModel

    titles = ("random", "random_2")
    return {title: ServedModel.load(title, str(exported), LIMITS, "cpu") for title in titles}


@pytest.fixture(scope="package")
def client(served, tmp_path_factory):
    """Requests to page and endpoints; what a handler raises is raised here."""
    for package in PACKAGES:
        pytest.importorskip(package)
    from fastapi.testclient import TestClient

    from ovd_d2.web.server import build_app, check_packages

    check_packages()
    folder = tmp_path_factory.mktemp("uploads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        app = build_app(served, LIMITS, folder)
        with TestClient(app) as made:
            made.folder = folder
            yield made
