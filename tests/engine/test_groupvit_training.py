"""GroupViT through the trainer: pairs as a source, resuming, segmentation as the test."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ovd_d2.config_file import load_config
from ovd_d2.engine import OpenVocabTrainer
from ovd_d2.engine.setup import check_config

COLOURS = {"red": (210, 40, 40), "green": (40, 190, 50), "blue": (40, 60, 220)}
SCENES = "groupvit_training_scenes"
SMALL = {
    "IMAGE_SIZE": 32, "PATCH": 8, "WIDTH": 24, "HEADS": 3, "DEPTHS": [1, 1, 1],
    "GROUP_TOKENS": [6, 3, 0], "OUTPUT_GROUPS": [6, 3], "DROP_PATH_RATE": 0.0, "TEXT.WIDTH": 16,
    "TEXT.HEADS": 2, "TEXT.LAYERS": 1, "TEXT.CONTEXT": 16, "EMBED_DIM": 16, "PROJECTOR_HIDDEN": 32,
    "WINDOW_TEST": 64, "STRIDE_TEST": 32, "BACKGROUND_THRESH_TEST": 0.3,
}  # fmt: skip


@pytest.fixture
def pairs(tmp_path):
    """Pictures of one colour with captions; and two colours side by side, with their labels."""
    folder, scenes = tmp_path / "pairs", tmp_path / "scenes"
    folder.mkdir()
    scenes.mkdir()
    rng, names = np.random.default_rng(0), list(COLOURS)
    for number in range(12):
        name = names[number % 3]
        pixels = np.clip(rng.normal(COLOURS[name], 25, (40, 50, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"a {name} thing")
    records = []
    for number in range(2):
        pixels, label = np.zeros((40, 60, 3), np.uint8), np.zeros((40, 60), np.uint8)
        for half in range(2):
            part = slice(30 * half, 30 * half + 30)
            pixels[:, part] = COLOURS[names[(number + half) % 3]]
            label[:, part] = 1 + (number + half) % 3
        path = scenes / f"{number}.png"
        Image.fromarray(pixels).save(path)
        Image.fromarray(label).save(scenes / f"{number}_label.png")
        records.append({"file_name": str(path), "sem_seg_file_name": f"{path.with_suffix('')}"
                        "_label.png", "image_id": number, "height": 40, "width": 60})  # fmt: skip
    DatasetCatalog.register(SCENES, lambda: records)
    classes = ["background", *names]
    MetadataCatalog.get(SCENES).set(
        stuff_classes=classes, ignore_label=255, evaluator_type="sem_seg"
    )
    yield folder
    DatasetCatalog.remove(SCENES)
    MetadataCatalog.remove(SCENES)


def config(folder, out, *opts):
    keys = [word for key, value in SMALL.items() for word in (f"MODEL.GROUPVIT.{key}", str(value))]
    source = {"NAME": "pairs", "OPTS": [
        "DATASETS.TRAIN", [f"pairs:{folder}"], "INPUT.MAPPER", "ImageTextPairMapper",
        "INPUT.PAIRS.IMAGE_SIZE", 32, "INPUT.PAIRS.PROMPTED_NOUNS", 2,
        "INPUT.PAIRS.NOUNS_BY", "stop-words", "INPUT.PAIRS.RANDOM_ERASING", 0.2,
    ]}  # fmt: skip
    return load_config("", [
        "MODEL.META_ARCHITECTURE", "GroupViT", "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *keys,
        "MODEL.OPEN_VOCAB.PROMPTS", "a {} thing", "INPUT.FORMAT", "RGB",
        "INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "96",
        "DATASETS.SOURCES", [source], "DATASETS.TRAIN", "()", "DATASETS.TEST", f"('{SCENES}',)",
        "DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "6", "SOLVER.OPTIMIZER", "ADAMW",
        "SOLVER.BASE_LR", "0.003", "SOLVER.WARMUP_ITERS", "0", "SOLVER.STEPS", "()",
        "SOLVER.MAX_ITER", "12", "SOLVER.CHECKPOINT_PERIOD", "6", "OUTPUT_DIR", str(out),
        "SEED", "2", *opts,
    ])  # fmt: skip


def train(cfg, resume=False, stop_at=None):
    Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
    check_config(cfg)
    torch.manual_seed(2)
    trainer = OpenVocabTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.max_iter = trainer.max_iter if stop_at is None else stop_at
    trainer.train()
    return trainer


def share_of_right_pixels(model):
    model.eval().set_vocabulary(["background", *COLOURS])
    shares = []
    for record in DatasetCatalog.get(SCENES):
        image = Image.open(record["file_name"]).resize((96, 64), Image.BILINEAR)
        sample = {"image": torch.from_numpy(np.array(image)).permute(2, 0, 1)}
        scores = model([{**sample, "height": 40, "width": 60}])[0]["sem_seg"]
        labels = np.array(Image.open(record["sem_seg_file_name"]))
        shares.append((scores.argmax(dim=0).numpy() == labels).mean())
    model.set_vocabulary(None)
    return sum(shares) / len(shares)


def test_it_learns_is_evaluated_and_resumes_exactly(pairs, tmp_path):
    whole = train(config(pairs, tmp_path / "whole"))
    assert whole.model.vocabulary is None  # the test's classes are gone again
    losses = {
        name: [value for value, _ in whole.storage.history(name).values()]
        for name in ("loss_contrastive", "loss_multi_label")
    }
    assert all(min(values[6:]) < values[0] for values in losses.values())
    results = json.loads((tmp_path / "whole/results.json").read_text())["results"][SCENES]
    found = results["sem_seg"]
    right = share_of_right_pixels(whole.model)
    assert found["pACC"] == pytest.approx(100 * right) and 0 < right < 1
    colours = [found[f"IoU-{name}"] for name in COLOURS]  # no pixel is of the background
    assert found["mIoU"] == pytest.approx(sum(colours) / len(colours))
    cfg = config(pairs, tmp_path / "halves")
    train(cfg, stop_at=6)
    (tmp_path / "halves/model_final.pth").unlink(missing_ok=True)
    halves = train(cfg, resume=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, halves.model.state_dict()[name]), name
