"""``train_net.py`` with a region store, from the command line to the metrics file."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
import warm_processes

from ovd_d2.encoders import text_encoder_id
from ovd_d2.region_store import RegionStoreWriter, StoreFacts
from ovd_d2.structures import RegionEmbeddings

ROOT = Path(__file__).resolve().parents[2]


def store_of_boxes(mini_root, path, encoder_id):
    """A store of the base boxes, embedded at random."""
    content = json.loads((mini_root / "annotations" / "train_base.json").read_text())
    boxes = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        boxes[annotation["image_id"]].append([x, y, x + w, y + h])
    facts = StoreFacts.for_dataset(
        "mini_v1_train_base", boxes, encoder_id=encoder_id, dim=384, crop_rule="1x", proposals="gt"
    )
    with RegionStoreWriter(path, facts) as writer:
        for image_id, rows in boxes.items():
            embeddings = torch.nn.functional.normalize(torch.randn(len(rows), 384), dim=1)
            writer.append(
                image_id, RegionEmbeddings(torch.tensor(rows).reshape(-1, 4), embeddings.half())
            )
    return str(path)


def train(mini_root, config, *opts):
    command = [sys.executable, "train_net.py", "--config-file", f"configs/mini/{config}", *opts]
    env = {**os.environ, "DETECTRON2_DATASETS": str(mini_root.parent)}
    return warm_processes.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500
    )


@pytest.mark.slow
@pytest.mark.parametrize("config", ["vild.yaml", "vild_ensemble.yaml"])
def test_the_student_trains_from_a_store(mini_root, tmp_path, config):
    store = store_of_boxes(mini_root, tmp_path / "store", text_encoder_id("minilm"))
    out = tmp_path / "out"
    done = train(
        mini_root, config, "OUTPUT_DIR", str(out), "DATASETS.REGION_STORE", store,
        "MODEL.OPEN_VOCAB.TEXT_ENCODER", "minilm", "SOLVER.MAX_ITER", "4",
        "SOLVER.IMS_PER_BATCH", "2", "DATASETS.TEST", "()",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(s) for s in (out / "metrics.json").read_text().splitlines()]
    assert any(line.get("loss_distill_l1", 0) > 0 for line in lines)
    assert any(-1 <= line.get("distill/cosine", 9) <= 1 for line in lines)


@pytest.mark.slow
def test_a_store_of_another_teacher_is_one_sentence(mini_root, tmp_path):
    store = store_of_boxes(mini_root, tmp_path / "store", "clip@2")
    done = train(
        mini_root, "vild.yaml", "OUTPUT_DIR", str(tmp_path / "out"),
        "DATASETS.REGION_STORE", store, "MODEL.OPEN_VOCAB.TEXT_ENCODER", "minilm",
    )  # fmt: skip
    assert done.returncode == 2
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ") and "clip@2" in line and "minilm@" in line
    assert not (tmp_path / "out").exists()
