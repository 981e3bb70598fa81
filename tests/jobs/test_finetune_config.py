"""The config of a fine-tuning by the stated rules."""

import pytest
import torch
from detectron2.config import get_cfg
from own_images import write_coco

from ovd_d2 import add_ovd_config
from ovd_d2.config_file import load_config
from ovd_d2.errors import OVDError
from ovd_d2.inference.model_folders import facts_of
from ovd_d2.jobs.finetune import _shared_images
from ovd_d2.jobs.finetune_config import (
    check_model,
    choose_recipe,
    finetune_config,
    read_start,
    schedule,
    write_config,
)
from ovd_d2.jobs.finetune_data import PreparedData

DATA = PreparedData("coco:a:train.json", "coco:a:val.json", 40, ("cat", "dog"), 0)
NAMES = ("backbone.w", "roi_heads.image_branch.w", "roi_heads.box_predictor.w")


def plain():
    cfg = get_cfg()
    add_ovd_config(cfg)
    return cfg


def of_mini():
    return read_start("mini", "", "", facts_of("mini"))


@pytest.mark.parametrize(
    ("side", "images", "batch", "iterations"),
    [(192, 40, 16, 100), (192, 500, 16, 625), (800, 500, 4, 2500), (800, 9000, 4, 5000),
     (192, 3, 3, 100), (0, 100, 4, 500)],
)  # fmt: skip
def test_batches_and_iterations_by_the_number_of_images(side, images, batch, iterations):
    cfg = plain()
    cfg.INPUT.MIN_SIZE_TRAIN = (side,)
    found = schedule(cfg, "frozen", images, 0)
    found = dict(zip(found[::2], found[1::2]))
    assert found["SOLVER.IMS_PER_BATCH"] == batch and found["SOLVER.MAX_ITER"] == iterations
    asked = schedule(cfg, "frozen", images, 7)
    assert asked[asked.index("SOLVER.MAX_ITER") + 1] == 7


@pytest.mark.parametrize(("images", "recipe"), [(5, "frozen"), (999, "frozen"), (1000, "full")])
def test_small_data_keep_the_backbone(images, recipe):
    assert choose_recipe(of_mini().cfg, "", images) == recipe


def test_the_packaged_model(tmp_path):
    start = of_mini()
    assert start.exported and start.test_datasets[0] == "mini_v1_val"
    cfg = finetune_config(start, DATA, "frozen", NAMES, out=tmp_path, old="mini_v1_val")
    assert list(cfg.MODEL.TUNE.FROZEN) == ["backbone.", "roi_heads.image_branch."]
    assert list(cfg.DATASETS.TEST) == ["mini_v1_val", DATA.val]
    assert list(cfg.DATASETS.TRAIN) == [DATA.train]
    assert cfg.INPUT.MIN_SIZE_TRAIN == (192,) and cfg.MODEL.OPEN_VOCAB.VOCABULARY == ""
    assert cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE == cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN == 100
    fewer = finetune_config(start, DATA, "frozen", NAMES[1:], out=tmp_path)
    assert list(fewer.MODEL.TUNE.FROZEN) == ["roi_heads.image_branch."]
    full = finetune_config(start, DATA, "full", NAMES, out=tmp_path)
    assert list(full.MODEL.TUNE.FROZEN) == ["roi_heads.image_branch."]
    linear = finetune_config(start, DATA, "linear", NAMES, out=tmp_path, rate=0.3)
    assert list(linear.MODEL.TUNE.ONLY) == ["roi_heads.box_predictor."]
    assert linear.SOLVER.BASE_LR == 0.3
    assert list(linear.DATASETS.TEST) == [DATA.val]


def test_what_was_typed_comes_last_and_the_yaml_says_it(tmp_path):
    words = ("SOLVER.BASE_LR", "0.25", "MODEL.TUNE.FROZEN", "['backbone.bottom_up.']")
    cfg = finetune_config(of_mini(), DATA, "frozen", NAMES, out=tmp_path, rate=0.5, overrides=words)
    write_config(cfg, tmp_path / "x.yaml", ("One line.", "Another."))
    text = (tmp_path / "x.yaml").read_text()
    assert text.startswith("# One line.\n# Another.\nVERSION: 2\n")
    read = load_config(str(tmp_path / "x.yaml"))
    assert read.dump() == cfg.dump()
    assert read.SOLVER.BASE_LR == 0.25 and read.MODEL.TUNE.FROZEN == ["backbone.bottom_up."]
    with pytest.raises(OVDError, match="there are 1 words, the last one being 'SEED'"):
        finetune_config(of_mini(), DATA, "frozen", NAMES, out=tmp_path, overrides=("SEED",))


@pytest.mark.parametrize(
    ("config", "recipe", "rate"),
    [("configs/glip/glip_t.yaml", "prompt", 0.05), ("configs/glip/glip_t.yaml", "lora", 2e-4),
     ("configs/detclip/detclip_v2_t_o365.yaml", "full", 4e-5),
     ("configs/vild/lvis_r50_fpn_vild.yaml", "frozen", 5e-4),
     ("configs/rkd/lvis_r50_fpn_rkd_pis_wt.yaml", "linear", 1e-3)],
)  # fmt: skip
def test_published_recipes_become_a_fine_tuning(tmp_path, config, recipe, rate):
    torch.save({}, tmp_path / "x.pth")
    start = read_start("", config, str(tmp_path / "x.pth"), {})
    cfg = finetune_config(start, DATA, choose_recipe(start.cfg, recipe, 10), (), out=tmp_path)
    found = cfg.SOLVER.BASE_LR
    assert found == rate and not cfg.MODEL.MASK_ON
    assert cfg.MODEL.REGION_DISTILLATION.WEIGHT == 0 and not cfg.DATASETS.REGION_STORE
    assert cfg.INPUT.MAPPER == "OpenVocabDatasetMapper" and not cfg.DATASETS.SOURCES
    found = cfg.MODEL.WEIGHTS
    assert found == str(tmp_path / "x.pth")
    for node, key in ((cfg.MODEL.SWIN, "WEIGHTS"), (cfg.MODEL.TIMM, "WEIGHTS")):
        assert node[key] == ""


def test_recipes_that_a_model_cannot_learn_by():
    start = of_mini()
    names = check_model(start.cfg, "frozen")
    assert any(name.startswith("roi_heads.image_branch.") for name in names)
    with pytest.raises(OVDError, match="--recipe lora: MODEL.TUNE.LORA: GeneralizedRCNN has no"):
        check_model(start.cfg, "lora")
    with pytest.raises(OVDError, match="--config-file nowhere.yaml does not exist"):
        read_start("", "nowhere.yaml", "", {})


def test_images_that_are_trained_on_and_tested_on_are_counted(tmp_path):
    """By where they lie, links followed."""
    labels = write_coco(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/images").symlink_to(tmp_path / "a/images")
    other = write_coco(tmp_path / "c")
    first, linked, apart = (
        f"coco:{folder}:{file}"
        for folder, file in (
            (labels.parent / "images", labels),
            (tmp_path / "b/images", labels),
            (other.parent / "images", other),
        )
    )
    assert _shared_images(first, linked) == 20
    assert _shared_images(first, apart) == 0
