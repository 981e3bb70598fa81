"""LSeg under our trainer: label maps in, steps, evaluation, few-shot samples, and a checkpoint that
goes on."""

import json

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ovd_d2 import add_ovd_config
from ovd_d2.engine import OpenVocabTrainer
from ovd_d2.engine.setup import check_config

NAMES = ["sky", "grass", "red mug"]
DATASET = "toy_label_maps"


@pytest.fixture
def cfg(tmp_path):
    """Four pictures, one colour per class, some pixels without one."""
    records = []
    for i in range(4):
        labels = np.full((64, 80), i % 2, np.uint8)
        labels[20:50, 10 + 5 * i : 40 + 5 * i] = 2
        labels[:4] = 255
        colours = np.array([[90, 150, 250], [40, 160, 40], [220, 30, 30]], np.uint8)
        image, maps = tmp_path / f"{i}.jpg", tmp_path / f"{i}.png"
        Image.fromarray(colours[np.minimum(labels, 2)]).save(image)
        Image.fromarray(labels).save(maps)
        records.append({"file_name": str(image), "sem_seg_file_name": str(maps), "image_id": i,
                        "height": 64, "width": 80})  # fmt: skip
    DatasetCatalog.register(DATASET, lambda: records)
    MetadataCatalog.get(DATASET).set(
        stuff_classes=NAMES, evaluator_type="sem_seg", ignore_label=255
    )
    rows = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.merge_from_list([
        "MODEL.META_ARCHITECTURE", "LSeg", "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "",
        "MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "tf_efficientnet_lite0",
        "MODEL.TIMM.WEIGHTS", "packaged:efficientnet-lite0",
        "MODEL.TIMM.OUT_STRIDES", [4, 8, 16, 32], "MODEL.LSEG.WIDTH", 16,
        "MODEL.OPEN_VOCAB.TEXT_EMBEDDINGS", str(tmp_path / "rows.npy"),
        "MODEL.OPEN_VOCAB.EMBED_DIM", 16, "DATASETS.TRAIN", (DATASET,), "DATASETS.TEST", (DATASET,),
        "INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64, "INPUT.RANDOM_FLIP", "horizontal",
        "INPUT.FORMAT", "RGB", "DATALOADER.NUM_WORKERS", 0, "SOLVER.OPTIMIZER", "ADAMW",
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False, "SEED", 1,
        "SOLVER.IMS_PER_BATCH", 2, "SOLVER.BASE_LR", 3e-3, "SOLVER.MAX_ITER", 8,
        "SOLVER.STEPS", (), "SOLVER.WARMUP_ITERS", 0, "SOLVER.CHECKPOINT_PERIOD", 4,
        "SOLVER.LR_MULTIPLIERS", [["backbone.", 0.1]], "OUTPUT_DIR", str(tmp_path / "run"),
    ])  # fmt: skip
    (tmp_path / "run").mkdir()
    yield cfg
    DatasetCatalog.remove(DATASET)
    MetadataCatalog.remove(DATASET)


def run(cfg, resume=False):
    trainer = OpenVocabTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def scores_of(model, record, **extra):
    """Of an image as it is, by the model at test."""
    pixels = torch.from_numpy(np.array(Image.open(record["file_name"]))).permute(2, 0, 1)
    with torch.no_grad():
        return model.eval()([{"image": pixels, **extra}])[0]["sem_seg"]


def share_of_right_pixels(model):
    right = count = 0
    for record in DatasetCatalog.get(DATASET):
        labels = torch.from_numpy(np.array(Image.open(record["sem_seg_file_name"])).astype(int))
        right += (scores_of(model, record).argmax(0) == labels).sum().item()
        count += (labels != 255).sum().item()
    return right / count


def test_trains_and_goes_on_bit_by_bit(cfg, tmp_path):
    trainer = run(cfg)
    lines = (tmp_path / "run" / "metrics.json").read_text().splitlines()
    assert any("loss_sem_seg" in json.loads(line) for line in lines)
    assert trainer.model.vocabulary.names == tuple(NAMES)  # of the training data
    found = json.loads((tmp_path / "run/results.json").read_text())["results"][DATASET]["sem_seg"]
    assert found["pACC"] == pytest.approx(100 * share_of_right_pixels(trainer.model))
    assert found["pACC"] > 50 and found["mIoU"] == pytest.approx(
        sum(found[f"IoU-{name}"] for name in NAMES) / len(NAMES)
    )
    whole = trainer.model.state_dict()
    (tmp_path / "run" / "last_checkpoint").write_text("model_0000003.pth")
    again = run(cfg, resume=True)
    assert again.start_iter == 4
    assert all(torch.equal(value, whole[key]) for key, value in again.model.state_dict().items())


def few_shot_records():
    """Every picture is asked for its mug, and for what is behind it."""
    records = []
    for number, name in ((1, NAMES[0]), (2, NAMES[2])):
        value = NAMES.index(name)
        for record in DatasetCatalog.get(DATASET):
            if number == 2 or record["image_id"] % 2 == 0:
                own = {"image_id": f"{record['image_id']}__{number}", "few_shot_class": number}
                records.append({**record, **own, "class_names": ("others", name),
                                "label_values": f"one:{value}:255"})  # fmt: skip
    return records


def test_few_shot_samples_are_learned_and_evaluated(cfg):
    """Two words per image, through mapper, model and evaluator; against a plain count."""
    DatasetCatalog.register("toy_few_shot", few_shot_records)
    MetadataCatalog.get("toy_few_shot").set(
        stuff_classes=["others", NAMES[0], NAMES[2]], ignore_label=255,
        evaluator_type="few_shot_sem_seg",
    )  # fmt: skip
    cfg.merge_from_list([
        "DATASETS.TRAIN", ("toy_few_shot",), "DATASETS.TEST", ("toy_few_shot",),
        "INPUT.SQUARE", 64, "SOLVER.MAX_ITER", 12,
    ])  # fmt: skip
    try:
        check_config(cfg)
        model = run(cfg).model
        found = OpenVocabTrainer.test(cfg, model)["sem_seg"]
    finally:
        DatasetCatalog.remove("toy_few_shot")
        MetadataCatalog.remove("toy_few_shot")
    both, either = np.zeros(3), np.zeros(3)
    for record in few_shot_records():
        image = Image.open(record["file_name"]).resize((64, 64), Image.BILINEAR)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        with torch.no_grad():
            sample = {"image": pixels, "class_names": record["class_names"]}
            scores = model.eval()([sample])[0]["sem_seg"]
        labels = Image.open(record["sem_seg_file_name"])
        columns = (np.arange(64) * 80) // 64
        labels = np.array(labels)[:, columns]
        wanted = labels == NAMES.index(record["class_names"][1])
        told = (scores[1] > scores[0]).numpy()
        both[record["few_shot_class"]] += (wanted & told)[labels != 255].sum()
        either[record["few_shot_class"]] += (wanted | told)[labels != 255].sum()
    iou = 100 * both[1:] / either[1:]
    assert [found["IoU-sky"], found["IoU-red mug"]] == pytest.approx(list(iou))
    assert found["mIoU"] == pytest.approx(iou.mean())
    assert found["IoU-red mug"] > 50
