"""Random models, and a checkout in which trainings take no time."""

import sys
from pathlib import Path

import pytest

from ovd_d2.benchmarks.recipes import commands as typed_commands
from ovd_d2.cli import benchmark, demo

sys.path.append(str(Path(__file__).resolve().parents[1] / "inference"))

from random_label_maps import label_map_checkpoint, label_map_config, label_map_model
from random_models import checkpoint, config, exported, text_cache, text_cache_folder

__all__ = [
    "checkpoint", "config", "exported", "label_map_checkpoint", "label_map_config",
    "label_map_model", "text_cache", "text_cache_folder",
]  # fmt: skip


TRAIN_NET = """
import json, os, sys, pathlib
assert os.environ["OMP_NUM_THREADS"].isdigit()
words = sys.argv[1:]
config = words[words.index("--config-file") + 1]
folder = pathlib.Path(words[words.index("OUTPUT_DIR") + 1])
(folder / "inference").mkdir(parents=True, exist_ok=True)
with open("calls.txt", "a") as calls:
    calls.write(" ".join(words) + "\\n")
if "FAIL" in open(config).read():
    print("a traceback")
    (folder / "last_checkpoint").write_text("model_0000009.pth")
    sys.exit("it broke")
(folder / "config.yaml").write_text("SOLVER: {MAX_ITER: 20}")
records = [{"iteration": i, "total_loss": 3 - i / 10, "time": 0.1} for i in (9, 19)]
(folder / "metrics.json").write_text("\\n".join(json.dumps(r) for r in records))
detections = [{"image_id": 10001, "category_id": 1, "bbox": [10, 20, 50, 60], "score": 0.9}]
(folder / "inference/lvis_instances_results.json").write_text(json.dumps(detections))
bbox = {"AP": 12.5, "AP_base": 20.0, "AP_novel": None, "AP50_base": 30.0, "AP50_novel": 4.0}
tasks = {"bbox": bbox, "segm": bbox} if "mask" in config else {"bbox": bbox}
if "lseg" in config:
    tasks = {"sem_seg": {"mIoU": 21.5, "mIoU_base": 25.0, "mIoU_novel": 2.5, "IoU-owl": 3.0}}
content = {"iteration": 20, "results": {"mini_v1_test": tasks}}
(folder / "results.json").write_text(json.dumps(content))
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch, mini_root):
    """A folder that looks like the repository to the demo and the benchmark; the current folder."""
    (tmp_path / "train_net.py").write_text(TRAIN_NET)
    configs = tmp_path / "configs/mini"
    configs.mkdir(parents=True)
    (configs / "Base.yaml").write_text("VERSION: 2\n")
    for name in {*demo.MODELS, *benchmark.KNOWN, *(row.yaml for row in benchmark.KNOWN.values())}:
        (configs / f"{name}.yaml").write_text(f"_BASE_: Base.yaml\nOUTPUT_DIR: {name}\n")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(mini_root.parent))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_mini_build(monkeypatch):
    """The commands before a training are shown, and nothing of them happens."""
    for module in (demo, benchmark, typed_commands):
        monkeypatch.setattr(module, "ovd_script", lambda: [sys.executable, "-c", "", "ovd"])
    monkeypatch.setattr(typed_commands, "_starter", lambda: [sys.executable, "-c", "", "ovd"])
