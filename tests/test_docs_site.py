"""The site: every page is built without a warning, and no configuration key is missing in it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

from ovd_d2.config import add_ovd_config

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "docs"))

from hooks import config_reference, keys_of, relinked  # noqa: E402


def leaves(node, prefix=""):
    for key, value in node.items():
        yield from (
            leaves(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else [prefix + key]
        )


def test_every_key_of_ours_has_a_row_with_words():
    cfg = get_cfg()
    before = set(leaves(cfg))
    add_ovd_config(cfg)
    rows = [line for line in config_reference().splitlines() if line.startswith("| `")]
    assert {row.split("`")[1] for row in rows} == set(leaves(cfg)) - before
    wordless = [row for row in rows if not row.rstrip(" |").rpartition("| ")[2].strip()]
    assert not wordless


def test_keys_and_the_comments_above_them():
    source = """
def add_keys(cfg):
    # Of a part.
    _C = cfg.MODEL.PART = CN()
    # First,
    # on two lines.
    _C.ONE = 1
    _C.TWO = 2

    cfg.TEST.PAIR = CN({"A": 1, "B": 2})
    other = 3
"""
    assert keys_of(source) == [
        ("MODEL.PART.ONE", "First, on two lines."),
        ("MODEL.PART.TWO", "First, on two lines."),
        ("TEST.PAIR.A", ""),
        ("TEST.PAIR.B", "see above"),
    ]


@pytest.mark.parametrize(
    "path, page, text, expected",
    [
        ("docs/a.md", "a.md", "[r](../configs/README.md#x)", "[r](recipes.md#x)"),
        ("docs/systems/a.md", "systems/a.md", "[r](../../configs/README.md)", "[r](../recipes.md)"),
        ("configs/README.md", "recipes.md", "[d](../datasets/README.md)", "[d](data-sets.md)"),
        ("README.md", "index.md", "[p](docs/predict.md)", "[p](predict.md)"),
        ("docs/a.md", "a.md", "[code](../tests/toy_system.py)", "code"),
        ("docs/a.md", "a.md", "[w](https://example.com/x)", "[w](https://example.com/x)"),
        ("docs/a.md", "a.md", "![p](images/p.jpg)", "![p](images/p.jpg)"),
    ],
)
def test_links_lead_to_pages_of_the_site(path, page, text, expected):
    assert relinked(text, path, page) == expected


@pytest.mark.slow
def test_the_site_is_built_without_warnings(tmp_path):
    pytest.importorskip("mkdocs")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for page in ("index.html", "configuration/index.html", "api/index.html", "recipes/index.html"):
        assert (tmp_path / page).is_file()
    assert "MODEL.OPEN_VOCAB.VOCABULARY" in (tmp_path / "configuration/index.html").read_text()
    assert "set_vocabulary" in (tmp_path / "api/index.html").read_text()
