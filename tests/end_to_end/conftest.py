"""A small mini for recipes that are run by commands."""

import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))

from code_blocks import small_mini  # noqa: E402


@pytest.fixture(scope="module")
def folder(mini_root, tmp_path_factory):
    """Of a module: ``configs`` and a few images of each split of mini in ``datasets``."""
    folder = tmp_path_factory.mktemp("recipe")
    small_mini(mini_root, folder / "datasets/mini-v1")
    shutil.copytree(ROOT / "configs", folder / "configs")
    return folder
