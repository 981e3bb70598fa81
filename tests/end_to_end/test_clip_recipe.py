"""configs/clip/*_imagenet*.yaml on a tiny ImageNet with a tiny file of OpenAI's kind."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import warm_processes
from PIL import Image

from ovd_d2.encoders.openai_clip import import_clip
from ovd_d2.language.imagenet_names import imagenet1k_synsets

ROOT = Path(__file__).resolve().parents[2]
SIZES = ["MODEL.CLIP.IMAGE_SIZE", "32", "MODEL.CLIP.EMBED_DIM", "32", "MODEL.CLIP.VIT.PATCH", "16",
         "MODEL.CLIP.VIT.WIDTH", "64", "MODEL.CLIP.VIT.LAYERS", "1", "MODEL.CLIP.TEXT.WIDTH", "64",
         "MODEL.CLIP.TEXT.HEADS", "1", "MODEL.CLIP.TEXT.LAYERS", "1",
         "MODEL.OPEN_VOCAB.PROMPTS", "a photo of a {}.", "DATALOADER.NUM_WORKERS", "0"]  # fmt: skip
COLOURS = {1: (220, 40, 40), 7: (40, 200, 40)}


@pytest.fixture
def data(tmp_path):
    """A folder of data sets with a few images of two classes, and a TorchScript archive."""
    rng, synsets = np.random.default_rng(0), imagenet1k_synsets()
    for split, count in (("train", 54), ("val", 6)):
        for label, colour in COLOURS.items():
            folder = tmp_path / "imagenet" / split / synsets[label]
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(rng.normal(colour, 40, (40, 34, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.JPEG")
    (tmp_path / "imagenet/classes.txt").write_text("\n".join(f"thing {i}" for i in range(1000)))
    torch.manual_seed(0)
    model = import_clip().model.CLIP(32, 32, 1, 64, 16, 77, 49408, 64, 1, 1).eval()
    inputs = (torch.zeros(1, 3, 32, 32), import_clip().tokenize(["cat"]))
    torch.jit.trace(model, inputs).save(tmp_path / "ViT.pt")
    return tmp_path


def evaluate(data, config):
    out = data / "out"
    done = warm_processes.run(
        [sys.executable, "train_net.py", "--eval-only", "--config-file", f"configs/clip/{config}",
         "MODEL.WEIGHTS", str(data / "ViT.pt"), "OUTPUT_DIR", str(out), *SIZES],
        cwd=ROOT, capture_output=True, text=True, timeout=500,
        env={**os.environ, "DETECTRON2_DATASETS": str(data)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((out / "results.json").read_text())["results"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_openais_file_is_evaluated_by_the_recipes(data):
    zero_shot = evaluate(data, "vit_b32_imagenet.yaml")["imagenet_val"]["classification"]
    assert zero_shot.keys() == {"top1", "top5", "mean_class_top1"}
    probed = evaluate(data, "vit_b32_imagenet_probe.yaml")
    assert probed["imagenet_probe_train"] == probed["imagenet_probe_val"] == {}
    assert probed["imagenet_val"]["linear_probe"]["top1"] > 80  # red or green
