"""Every yaml under configs/ builds as it is, and narrower makes a training step and infers."""

from functools import cache, partial
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from transformers import BertConfig, BertModel

from ovd_d2 import add_ovd_config
from ovd_d2.data.mappers.teacher_regions import TeacherRegions
from ovd_d2.data.named_datasets import register_named_files
from ovd_d2.errors import OVDError
from ovd_d2.language import ConceptDictionary, RandomEmbeddings
from ovd_d2.modeling import is_open_vocabulary, set_vocabulary
from ovd_d2.modeling.text_backbone import huggingface
from ovd_d2.region_store import RegionStoreWriter, StoreFacts
from ovd_d2.structures import (
    PartialMasks,
    RegionEmbeddings,
    Supervision,
    TokenSpans,
    supervision_of,
)

CONFIGS = Path(__file__).parents[1] / "configs"
# The backbone of an LSeg -> one of the same kind.
SMALLER = {
    "vit_large_patch16_384": "vit_tiny_patch16_384",
    "vit_base_patch32_384": "vit_small_patch32_384",
    "resnet101": "resnet26",
}
RECIPES = sorted(p for p in CONFIGS.rglob("*.yaml") if not p.name.startswith("Base-"))
OF_TRANSFORMERS = [p for p in RECIPES if p.parent.name == "huggingface"]
FAMILY_OF = {
    "grounding-dino": ("grounding_dino_tiny", "grounding_dino_base"),
    "mm-grounding-dino": ("mm_grounding_dino_tiny", "llmdet_tiny"),
    "owlv2": ("owlv2_base", "owlv2_large"),
    "omdet-turbo": ("omdet_turbo_tiny",),
}


bert_base = huggingface._bert_base


@pytest.fixture(scope="module", autouse=True)
def large_parts_are_made_once_or_small():
    """The recipes of DetCLIP name the same dictionary, which has 70,000 concepts; GLIP's text
    backbone is BERT-base, which has twelve blocks of 768 channels."""
    small = BertConfig(
        num_hidden_layers=2, hidden_size=96, num_attention_heads=2, intermediate_size=192
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConceptDictionary, "load", cache(ConceptDictionary.load))
        patch.setattr(huggingface, "_bert_base", lambda: BertModel(small, add_pooling_layer=False))
        yield


def name_of(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


@cache
def read_config(path: Path):
    cfg = get_cfg()
    add_ovd_config(cfg)
    with pytest.MonkeyPatch.context() as patch:  # the same values, ten times as fast
        patch.setattr(yaml, "safe_load", partial(yaml.load, Loader=yaml.CSafeLoader))
        cfg.merge_from_file(str(path))
    return cfg


def plain_config(path: Path):
    return read_config(path).clone()


def distinct_models() -> list[Path]:
    """One recipe for each model: others differ in data, schedule or evaluation alone."""
    first = {}
    for path in RECIPES:
        cfg = plain_config(path)
        if cfg.MODEL.META_ARCHITECTURE == "HuggingFaceDetector":
            continue  # evaluated as they are, see below
        learns = bool(cfg.DATASETS.REGION_STORE)
        cfg.MODEL.WEIGHTS, cfg.MODEL.GLIP.NAMES_PER_CAPTION = "", 0
        cfg.MODEL.GROUPVIT.BACKGROUND_THRESH_TEST = 0.0
        of_words = cfg.MODEL.META_ARCHITECTURE in ("GLIP", "DetCLIP", "LSeg", "MAVL")
        data = () if of_words else cfg.DATASETS.TRAIN
        first.setdefault((repr(cfg.MODEL), learns, data), path)
    return list(first.values())


MODELS = distinct_models()
# What all the models but those of mini get: fewer blocks that are alike, and narrower ones.
NARROW = {
    "ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16, "RPN.POST_NMS_TOPK_TEST": 10,
    "SWIN.EMBED_DIM": 24, "SWIN.DEPTHS": [2, 2, 2, 2], "SWIN.NUM_HEADS": [1, 2, 4, 8],
    "RESNETS.WIDTH_PER_GROUP": 8, "RESNETS.RES2_OUT_CHANNELS": 32, "FPN.OUT_CHANNELS": 32,
    "ROI_BOX_HEAD.FC_DIM": 64, "ROI_BOX_HEAD.CONV_DIM": 32, "ROI_MASK_HEAD.CONV_DIM": 32,
    "GLIP.NUM_BLOCKS": 2, "DETCLIP.TEXT.WIDTH": 64, "DETCLIP.TEXT.LAYERS": 2,
    "GROUPVIT.PROJECTOR_HIDDEN": 64, "GROUPVIT.TEXT.LAYERS": 2, "GROUPVIT.DEPTHS": [1, 1, 1],
    "CLIP.VIT.WIDTH": 64, "CLIP.VIT.LAYERS": 2, "CLIP.RESNET.WIDTH": 16, "CLIP.TEXT.WIDTH": 64,
    "CLIP.TEXT.HEADS": 1, "CLIP.TEXT.LAYERS": 2, "CLIP.RESNET.LAYERS": [1, 2, 1, 1],
    "MAVL.HIDDEN": 64, "MAVL.OBJECT_QUERIES": 20, "MAVL.ENCODER_LAYERS": 2,
    "MAVL.DECODER_LAYERS": 2, "MAVL.FUSION_LAYERS": 2,
}  # fmt: skip


def on_cpu(path: Path):
    """The config for a machine without a network: classes that CLIP's text tower would embed get
    random embeddings later (:func:`build`), MAVL reads with MiniLM."""
    cfg = plain_config(path)
    cfg.MODEL.DEVICE = "cpu"
    if cfg.MODEL.OPEN_VOCAB.TEXT_ENCODER.startswith("openai-clip:"):
        cfg.MODEL.OPEN_VOCAB.VOCABULARY = "later"
    if cfg.MODEL.META_ARCHITECTURE == "MAVL":
        cfg.MODEL.TEXT_BACKBONE.MODEL, cfg.MODEL.TEXT_BACKBONE.MAX_TOKENS = "minilm", 256
    if cfg.MODEL.META_ARCHITECTURE == "LSeg":
        cfg.MODEL.TIMM.WEIGHTS = ""
    return cfg


def load(path: Path):
    """The config for a step on CPU: narrow, unless it is one of mini's; and with BN instead of
    SyncBN, which has no CPU kernel."""
    cfg = on_cpu(path)
    cfg.TEST.DETECTIONS_PER_IMAGE = 10
    if path.parent.name != "mini":
        depth = cfg.MODEL.RESNETS.DEPTH
        cfg.merge_from_list([v for k, value in NARROW.items() for v in (f"MODEL.{k}", value)])
        cfg.MODEL.RESNETS.DEPTH = min(depth, 50)
    smaller = SMALLER.get(cfg.MODEL.TIMM.NAME)
    if cfg.MODEL.META_ARCHITECTURE == "LSeg" and smaller:
        cfg.MODEL.TIMM.NAME = smaller
        cfg.MODEL.TIMM.VIT.BLOCKS, cfg.MODEL.TIMM.VIT.CHANNELS = [2, 5, 8, 11], [16, 32, 64, 64]
        cfg.MODEL.LSEG.WIDTH, test = 32, cfg.MODEL.LSEG.TEST
        test.WINDOW, test.STRIDE, test.BASE_SIZE = test.WINDOW // 5, 64, 104  # 0 stays 0
        test.SCALES = test.SCALES[-1:]
    for section in (cfg.MODEL.RESNETS, cfg.MODEL.FPN, cfg.MODEL.RPN, cfg.MODEL.ROI_BOX_HEAD,
                    cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.LSEG):  # fmt: skip
        section.NORM = "BN" if "SyncBN" in section.NORM else section.NORM
    return cfg


def build(cfg):
    """The model; classes that were put off are embedded at random."""
    model = build_model(cfg)
    if is_open_vocabulary(model) and cfg.MODEL.OPEN_VOCAB.VOCABULARY == "later":
        if cfg.MODEL.META_ARCHITECTURE == "MAVL":
            pass  # finds objects of any class
        elif cfg.MODEL.META_ARCHITECTURE == "LSeg":
            embedder = RandomEmbeddings(cfg.MODEL.OPEN_VOCAB.EMBED_DIM)
            model.target_checks.class_numbers.train_dataset = ""
            set_vocabulary(model, "cat, red mug, zebra crossing", embedder)
        elif cfg.MODEL.META_ARCHITECTURE in ("CLIP", "GroupViT"):  # have texts of their own
            set_vocabulary(model, "cat, background, zebra crossing")
        elif getattr(model, "reads_captions", False):  # reads the words too
            set_vocabulary(model, "cat, red mug, zebra crossing")
        else:
            names = f"dataset:{cfg.DATASETS.TRAIN[0]}"
            set_vocabulary(model, names, RandomEmbeddings(cfg.MODEL.OPEN_VOCAB.EMBED_DIM))
    return model


def tiny_store(path: Path, dim: int) -> Path:
    """A region store with three regions of image 1."""
    facts = {"encoder_id": "test@1", "dim": dim, "crop_rule": "1x", "proposals": "gt"}
    boxes = torch.tensor([[0.0, 0, 80, 70], [30, 30, 70, 96], [80, 10, 128, 80]])
    embeddings = torch.nn.functional.normalize(torch.randn(3, dim), dim=1)
    with RegionStoreWriter(path, StoreFacts.for_dataset("tiny", [1], **facts)) as writer:
        writer.append(1, RegionEmbeddings(boxes, embeddings.half()))
    return path


class RandomTeacher:
    """In the place of CLIP on crops."""

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def encode(self, images, boxes):
        assert all(image.dtype == torch.uint8 for image in images)
        return [torch.nn.functional.normalize(torch.randn(len(b), self.dim)) for b in boxes]


def batch(with_mask: bool) -> list[dict]:
    target = Instances((96, 128))
    target.gt_boxes = Boxes(torch.tensor([[10.0, 10, 60, 70], [50, 20, 120, 90]]))
    target.gt_classes = torch.tensor([0, 2])
    if with_mask:
        masks = torch.zeros(2, 96, 128, dtype=torch.bool)
        masks[0, 20:60, 20:50] = masks[1, 30:80, 60:110] = True
        target.gt_masks = BitMasks(masks)
    image = torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)
    sample = {"image": image, "instances": target, "height": 96, "width": 128}
    sample["sem_seg"] = torch.arange(128).div(48, rounding_mode="floor").repeat(96, 1)
    captions = ("a cat", "a red mug")
    return [{**sample, "caption": caption, "prompted_nouns": [caption] * 3} for caption in captions]


def with_phrases(data: list[dict]) -> list[dict]:
    """The samples with grounded captions."""
    for sample in data:
        sample["instances"].gt_phrases = torch.tensor([0, 1])
        sample["caption"] = TokenSpans("a cat beside a red mug", (((2, 5),), ((15, 22),)))
    return data


def pairs() -> list[dict]:
    """Image-text pairs: pixels, and a caption with its noun phrases."""
    images = torch.randint(0, 256, (2, 3, 96, 128), dtype=torch.uint8)
    texts = ["a cat on a mat", "cat", "mat"], ["a red mug"]
    return [{"image": image, "concepts": words} for image, words in zip(images, texts)]


def with_image_label(sample: dict) -> dict:
    """The sample with a pseudo box of class 1 behind its rows."""
    targets = sample["instances"]
    rows = Instances(targets.image_size)
    rows.gt_boxes = Boxes(torch.cat([targets.gt_boxes.tensor, torch.tensor([[20.0, 5, 90, 60]])]))
    rows.gt_classes = torch.cat([targets.gt_classes, torch.tensor([1])])
    tags = supervision_of(targets)
    rows.supervision = torch.cat([tags, torch.tensor([int(Supervision.IMAGE_LABEL)])])
    if targets.has("gt_masks"):
        rows.gt_masks = PartialMasks.followed_by_none(targets.gt_masks, 1)
    return {**sample, "instances": rows}


def check_gradients(model, losses: dict) -> None:
    """All parameters that train have one, as DistributedDataParallel wants."""
    model.zero_grad(set_to_none=True)
    sum(losses.values()).backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


@pytest.mark.parametrize(
    "path", [path for path in MODELS if path.parent.name != "mini"], ids=name_of
)
def test_config_builds_in_full_size(path, monkeypatch):
    """Without memory for its parameters (device "meta"), thus without the time to fill them."""
    cfg = on_cpu(path)
    cfg.MODEL.OPEN_VOCAB.VOCABULARY = "later"
    if cfg.MODEL.META_ARCHITECTURE == "MAVL":
        cfg.MODEL.TEXT_BACKBONE.MODEL = "bert-base-uncased"  # has no weights to load
    with torch.device("meta"):
        torch.empty(0)  # the context learns torch's functions here and must not learn the next two
        for name in ("linspace", "tensor"):  # whose numbers are read at once
            monkeypatch.setattr(torch, name, partial(getattr(torch, name), device="cpu"))
        monkeypatch.setattr(huggingface, "_bert_base", bert_base)
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    filled = {name: value.numel() for name, value in model.named_parameters() if not value.is_meta}
    assert max(filled.values(), default=1) == 1, filled


@pytest.mark.parametrize("path", MODELS, ids=name_of)
def test_config_builds_and_trains_a_step(path, tmp_path):
    cfg = load(path)
    torch.manual_seed(0)
    model = build(cfg)
    data = batch(cfg.MODEL.MASK_ON)
    if cfg.MODEL.META_ARCHITECTURE == "MAVL":
        data = with_phrases(data)
    elif getattr(model, "reads_captions", False):  # of detection data, as the first source
        data = [{k: v for k, v in sample.items() if k != "caption"} for sample in data]
    dim = cfg.MODEL.OPEN_VOCAB.EMBED_DIM
    heads = getattr(model, "roi_heads", None)  # CLIP has none
    learns = getattr(heads, "needs_teacher_regions", False)
    assert learns == bool(cfg.DATASETS.REGION_STORE)
    if learns:
        regions = TeacherRegions(tiny_store(tmp_path / "store", dim))
        rows = regions.append_to(data[0]["instances"], 1, T.NoOpTransform())
        data = [{**data[0], "instances": rows}, data[1]]
    learns_labels = cfg.MODEL.IMAGE_LABELS.WEIGHT > 0
    if learns_labels:
        data = [data[0], with_image_label(data[1])]
    if cfg.MODEL.IMAGE_BRANCH.NAME == "TeacherOnCrops":
        teacher = RandomTeacher(dim)
        model.roi_heads.image_branch._load_encoder = lambda device: (teacher, "")
    with EventStorage():
        losses = model(data)
    assert ("loss_mask" in losses) == cfg.MODEL.MASK_ON
    assert all(torch.isfinite(v) for v in losses.values()), losses
    assert any("distill" in name for name in losses) == learns
    assert any("image_label" in name for name in losses) == learns_labels
    check_gradients(model, losses)
    if cfg.MODEL.META_ARCHITECTURE == "DetCLIP":
        losses = model(pairs())
        assert list(losses) == ["loss_word_region"] and torch.isfinite(losses["loss_word_region"])
        check_gradients(model, losses)
    model.eval()
    if not cfg.MODEL.MAVL.LANGUAGE:  # reads no captions
        data = [{k: v for k, v in sample.items() if k != "caption"} for sample in data]
    with torch.no_grad():
        assert len(model(data)) == 2


@pytest.mark.parametrize("path", OF_TRANSFORMERS, ids=lambda p: p.stem)
def test_zero_shot_recipe_detects(path, tmp_path):
    """With a tiny model of the same family; the model itself is on the hub, which is not there."""
    from tiny_detectors import SAVE

    cfg = load(path)
    with pytest.raises(OVDError, match=f"MODEL.HUGGINGFACE.MODEL {cfg.MODEL.HUGGINGFACE.MODEL} "):
        build_model(cfg)
    (kind,) = [k for k, stems in FAMILY_OF.items() if path.stem in stems]
    SAVE[kind](tmp_path)
    cfg.MODEL.HUGGINGFACE.MODEL = str(tmp_path)
    cfg.MODEL.OPEN_VOCAB.VOCABULARY = "cat, red mug, zebra crossing"
    found = build_model(cfg).eval()(batch(with_mask=False))
    assert len(found) == 2 and len(found[0]["instances"]) > 2


def test_readme_tables_every_recipe():
    table = (CONFIGS / "README.md").read_text()
    missing = [str(p.relative_to(CONFIGS)) for p in RECIPES if p.name not in table]
    assert missing == []


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_data_sets_of_the_recipe_are_registered(path, tmp_path):
    from detectron2.data import DatasetCatalog

    cfg = load(path)
    names = {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST}
    for name in names:
        register_named_files(name)
    assert names and names <= set(DatasetCatalog.list())


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_stages_start_from_what_other_recipes_write_and_files_are_documented(path):
    """Weights come from outside or from the folder of a recipe; stores, label files and their
    commands are in datasets/README.md; sources name keys of the config."""
    cfg = plain_config(path)
    weights = cfg.MODEL.WEIGHTS
    if weights.startswith("output/"):
        folders = {read_config(p).OUTPUT_DIR for p in RECIPES}
        assert weights.removesuffix("/model_final.pth") in folders
    readme = (CONFIGS.parent / "datasets" / "README.md").read_text()
    mentioned = [cfg.DATASETS.REGION_STORE] if cfg.DATASETS.REGION_STORE else []
    mentioned += [name.removeprefix("labels:") for name in cfg.DATASETS.TRAIN if ":" in name]
    for source in cfg.DATASETS.SOURCES:
        assert set(source) <= {"NAME", "RATIO", "OPTS"}
        one = cfg.clone()
        one.merge_from_list(source.get("OPTS", []))
        mentioned += [name.removeprefix("labels:") for name in one.DATASETS.TRAIN if ":" in name]
        mentioned += [one.DATASETS.REGION_STORE] if one.DATASETS.REGION_STORE else []
    assert [name for name in mentioned if f"`{name}`" not in readme] == []
