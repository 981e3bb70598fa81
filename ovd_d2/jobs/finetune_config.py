"""The config of a fine-tuning: a trained model, a recipe, and a schedule by the image count."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

from ovd_d2.config import add_ovd_config
from ovd_d2.config_file import explain_config_error, load_config
from ovd_d2.data.model_kind import brings_weights, has_open_vocabulary
from ovd_d2.encoders.huggingface_detectors import SCHEME
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import atomic_write, write_json
from ovd_d2.inference.model_folders import config_and_weights, packaged_models
from ovd_d2.inference.open_detector import inference_config, run_files
from ovd_d2.language import Vocabulary
from ovd_d2.modeling.build import explained_build
from ovd_d2.modeling.roi_heads.image_branch import IMAGE_BRANCH_REGISTRY
from ovd_d2.modeling.tuning import RECIPES, declared_recipes, tune_model
from ovd_d2.structures import Supervision

from .finetune_data import PreparedData

SMALL = 1000  # images: with fewer the backbone is frozen unless a recipe is named
# Per recipe the learning rate of AdamW, where the model's own recipe has none.
RATES = {"full": 0.0002, "frozen": 0.0005, "linear": 0.001, "prompt": 0.05, "lora": 0.001}
SMALL_INPUT = 320  # pixels of the shorter side: up to that, batches are of 16 images, else of 4
EPOCHS, FEWEST, MOST = 20, 100, 5000  # iterations: EPOCHS over the images, within these bounds


@dataclass(frozen=True)
class Start:
    """What is fine-tuned.

    Attributes:
        cfg: the model's, without classes and without weights to start parts from.
        weights: the checkpoint; "": the model brings its own.
        exported: ``cfg`` says how to predict, and nothing about training.
        test_datasets: what its makers tested it on.
    """

    cfg: CfgNode
    weights: str
    exported: bool
    test_datasets: tuple[str, ...] = ()


def read_start(model: str, config_file: str, weights: str, facts: Mapping[str, Any]) -> Start:
    """Config and weights of the model to start from.

    Args:
        model: as in ``config_and_weights``; not used if ``config_file`` is given.
        config_file: yaml; "": ``model``.
        weights: its checkpoint, or the folder of the run; "": MODEL.WEIGHTS of the yaml.
        facts: of ``model``.

    Raises:
        OVDError: something is missing or damaged.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if not config_file:
        scheme, folder = model.rpartition(SCHEME)[1:] if model.startswith(SCHEME) else ("", model)
        # The yaml is for any working folder.
        if folder not in packaged_models() and os.path.isdir(folder):
            model = scheme + os.path.abspath(folder)
        cfg, path = config_and_weights(model)
        chosen = (facts.get("score_threshold_chosen") or {}).get("dataset")
        tested = [chosen, *(facts.get("results") or {})]
        names = tuple(dict.fromkeys(name for name in tested if name))
        return Start(inference_config(cfg, device), _absolute(path), True, names)
    cfg = load_config(config_file)
    path = weights or cfg.MODEL.WEIGHTS
    if not path and not brings_weights(cfg):
        raise OVDError(f"--config-file {config_file} has no MODEL.WEIGHTS: add --weights.")
    if path and os.path.isdir(path):
        path = run_files(path, config_file, asked="--weights")[0]
    return Start(inference_config(cfg, device), _absolute(path), False, tuple(cfg.DATASETS.TEST))


def _absolute(path: str | os.PathLike) -> str:
    return os.path.abspath(os.path.expanduser(path)) if path else ""


def choose_recipe(cfg: CfgNode, wanted: str, images: int) -> str:
    """The recipe, ``wanted`` if it is one of those that the model declares.

    Args:
        cfg: of the model.
        wanted: one of :data:`RECIPES`; "": "frozen" for fewer than :data:`SMALL` images, else
            "full".
        images: to train on.

    Raises:
        OVDError: the model cannot be fine-tuned on boxes, or not so.
    """
    declared = declared_recipes(cfg)
    what = cfg.MODEL.META_ARCHITECTURE
    if declared is None or not has_open_vocabulary(cfg):
        raise OVDError(
            f"The model ({what}, {cfg.MODEL.ROI_HEADS.NAME}) has fixed classes or finds no "
            "boxes, so it cannot be fine-tuned on other names: take one that finds named things, "
            "such as the packaged mini, or ROI heads such as OpenVocabROIHeads."
        )
    recipe = wanted or ("frozen" if images < SMALL else "full")
    if recipe not in RECIPES:
        raise OVDError(f"--recipe {recipe}: it must be {', '.join(RECIPES)}.")
    if recipe not in declared:
        raise OVDError(
            f"--recipe {recipe}: {what} cannot be fine-tuned so; it can by {', '.join(declared)}."
        )
    return recipe


def check_model(cfg: CfgNode, recipe: str) -> list[str]:
    """Builds the model to see whether it can learn by ``recipe``, before anything is written.

    Args:
        cfg: of the model.
        recipe: of :func:`choose_recipe`.

    Returns:
        the names of its parameters.

    Raises:
        OVDError: it cannot.
    """
    cfg = cfg.clone()
    _merge(cfg, ["MODEL.TUNE.FROZEN", [], "MODEL.TUNE.ONLY", [], "MODEL.TUNE.LORA.RANK", 0])
    _merge(cfg, declared_recipes(cfg)[recipe])
    with explained_build(cfg):
        model = build_model(cfg)
    if not getattr(model, "can_learn", True):
        raise OVDError(
            "Models of this family cannot be trained, transformers has no loss for them: take a "
            "Grounding DINO, or the packaged mini."
        )
    names = [name for name, _ in model.named_parameters()]
    cfg.MODEL.TUNE.FROZEN = _existing(cfg.MODEL.TUNE.FROZEN, names)
    try:
        tune_model(model, cfg)
    except OVDError as error:
        raise OVDError(f"--recipe {recipe}: {error}") from error
    return names


def _existing(prefixes: Sequence[str], names: Sequence[str]) -> list[str]:
    """The prefixes that some name begins with: a recipe is for all models of an architecture, of
    which some have no parameters in a part that it fixes."""
    return [prefix for prefix in prefixes if any(name.startswith(prefix) for name in names)]


def schedule(cfg: CfgNode, recipe: str, images: int, iterations: int) -> list[Any]:
    """Batch size, iterations and learning rate by the stated rule, as KEY, value, ...

    Args:
        cfg: says how large images are.
        recipe: decides about the rate.
        images: to train on.
        iterations: instead of the rule's; 0: by the rule.
    """
    side = max(cfg.INPUT.MIN_SIZE_TRAIN)
    batch = min(16 if 0 < side <= SMALL_INPUT else 4, images)
    iterations = iterations or min(max(EPOCHS * images // batch, FEWEST), MOST)
    return [
        "SOLVER.OPTIMIZER", "ADAMW", "SOLVER.BASE_LR", RATES[recipe],
        "SOLVER.LR_MULTIPLIERS", [], "SOLVER.WEIGHT_DECAY", 0.0001,
        "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.STEPS", [],
        "SOLVER.WARMUP_ITERS", max(iterations // 20, 1), "SOLVER.WARMUP_FACTOR", 0.05,
        "SOLVER.IMS_PER_BATCH", batch, "SOLVER.MAX_ITER", iterations,
        "SOLVER.CHECKPOINT_PERIOD", max(iterations // 5, 20), "SOLVER.REFERENCE_WORLD_SIZE", 0,
        "SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model",
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 5.0,
    ]  # fmt: skip


def finetune_config(
    start: Start,
    data: PreparedData,
    recipe: str,
    parameters: Sequence[str],
    *,
    out: Path,
    iterations: int = 0,
    rate: float = 0.0,
    seed: int = 0,
    old: str = "",
    replay: str = "",
    replay_share: float = 0.25,
    overrides: Sequence[str] = (),
) -> CfgNode:
    """The whole config.

    Args:
        start: the model.
        data: to train and validate on.
        recipe: of :func:`choose_recipe`.
        parameters: of :func:`check_model`.
        out: OUTPUT_DIR is out/train.
        iterations: 0: by the rule.
        rate: learning rate; 0: by the rule.
        seed: of training.
        old: a data set that is tested too; "": none.
        replay: a data set that is trained on beside the new one; "": none.
        replay_share: of the batches that are of it.
        overrides: KEY, value, ...

    Raises:
        OVDError: a bad key or value.
    """
    cfg = start.cfg.clone()
    settings = [
        *_plain(cfg), *(_sizes(cfg) if start.exported else ()), *_without_teachers(cfg),
        "MODEL.WEIGHTS", start.weights, "OUTPUT_DIR", str(out / "train"), "SEED", seed,
        "DATASETS.TRAIN", [data.train], "DATASETS.TEST", [*([old] if old else []), data.val],
        *_mixed(out, data.train, replay, replay_share),
    ]  # fmt: skip
    _merge(cfg, settings)
    _merge(cfg, schedule(cfg, recipe, data.images, iterations))
    branch = list(cfg.MODEL.TUNE.FROZEN)
    _merge(cfg, declared_recipes(cfg)[recipe])
    cfg.SOLVER.BASE_LR = rate or cfg.SOLVER.BASE_LR
    frozen = dict.fromkeys([*cfg.MODEL.TUNE.FROZEN, *branch])
    cfg.MODEL.TUNE.FROZEN = _existing(list(frozen), parameters)
    if len(overrides) % 2:
        raise OVDError(
            f"What follows the options are pairs of KEY and value, but there are {len(overrides)} "
            f"words, the last one being {overrides[-1]!r}."
        )
    try:
        cfg.merge_from_list(list(overrides))
    except Exception as error:
        raise OVDError(explain_config_error("The options", error, cfg)) from error
    return cfg


def _merge(cfg: CfgNode, settings: Sequence[Any]) -> None:
    """Our own settings; tuples and lists stand for each other."""
    for key, value in zip(settings[::2], settings[1::2]):
        node, last = cfg, key.split(".")[-1]
        for part in key.split(".")[:-1]:
            node = node[part]
        node[last] = tuple(value) if isinstance(node[last], tuple) else value


def _plain(cfg: CfgNode) -> list[Any]:
    """What belongs to the training that is over, back to its defaults."""
    return [
        "MODEL.OPEN_VOCAB.VOCABULARY", "", "MODEL.MASK_ON", False, "MODEL.KEYPOINT_ON", False,
        "MODEL.TUNE.FROZEN", [], "MODEL.TUNE.ONLY", [], "MODEL.TUNE.LORA.RANK", 0,
        "MODEL.IMAGE_LABELS.WEIGHT", 0.0, "MODEL.OPEN_VOCAB.REGION_TASKS", [],
        "DATASETS.SOURCES", [], "DATASETS.MIXING", "alternate", "DATASETS.REGION_STORE", "",
        "DATASETS.NOVEL_NAMES", [], "DATASETS.REGISTER", [], "DATASETS.TRAIN_REPEAT_FACTOR", [],
        "DATASETS.PROPOSAL_FILES_TRAIN", [], "DATASETS.PROPOSAL_FILES_TEST", [],
        "INPUT.MAPPER", "OpenVocabDatasetMapper", "DATALOADER.SAMPLER_TRAIN", "TrainingSampler",
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False, "SOLVER.ACCUMULATE", 1,
        "DATALOADER.NUM_WORKERS", 4 if cfg.MODEL.DEVICE.startswith("cuda") else 0,
        "TEST.EVAL_PERIOD", 0, "TEST.EXPECTED_RESULTS", [], "TEST.AUG.ENABLED", False,
        "TEST.FIXED_AP", False, "TEST.DISTRACTORS", "", "TEST.PRECISE_BN.ENABLED", False,
    ]  # fmt: skip


def _sizes(cfg: CfgNode) -> list[Any]:
    """Of training, which an exported config does not say: as at test time."""
    proposals = cfg.MODEL.RPN.POST_NMS_TOPK_TEST
    sizes = [
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN", cfg.MODEL.RPN.PRE_NMS_TOPK_TEST,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN", proposals,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", min(512, proposals),
    ]  # fmt: skip
    if cfg.INPUT.MIN_SIZE_TEST:
        sizes += ["INPUT.MIN_SIZE_TRAIN", [cfg.INPUT.MIN_SIZE_TEST]]
        sizes += ["INPUT.MAX_SIZE_TRAIN", cfg.INPUT.MAX_SIZE_TEST]
    return sizes


def _without_teachers(cfg: CfgNode) -> list[Any]:
    """Nothing learns from a teacher's regions, for which there is no store: a branch that did stays
    as it is."""
    name = cfg.MODEL.IMAGE_BRANCH.NAME
    if not name:
        keys = ("MODEL.REGION_DISTILLATION.WEIGHT", "MODEL.REGION_DISTILLATION.RELATION_WEIGHT")
        return [part for key in keys for part in (key, 0.0)]
    kind = getattr(IMAGE_BRANCH_REGISTRY.get(name), "kind", None)
    if kind != Supervision.TEACHER_REGION:
        return []
    return ["MODEL.TUNE.FROZEN", ["roi_heads.image_branch."]]


def _mixed(out: Path, train: str, replay: str, share: float) -> list[Any]:
    """Batches of the old data set among those of the new one, and the classes of both."""
    if not replay:
        return []
    new, old = Vocabulary.load(f"dataset:{train}"), Vocabulary.load(f"dataset:{replay}")
    more = [k for k, name in enumerate(old.names) if name not in new.names]
    both = Vocabulary(
        names=(*new.names, *(old.names[k] for k in more)),
        synonyms=(*new.synonyms, *(old.synonyms[k] for k in more)),
        definitions=(*new.definitions, *(old.definitions[k] for k in more)),
        is_novel=(*new.is_novel, *(old.is_novel[k] for k in more)),
    )
    file = out / "data" / "vocabulary.json"
    write_json(file, both.to_dict())
    return [
        "MODEL.OPEN_VOCAB.VOCABULARY", str(file.absolute()),
        "DATASETS.SOURCES", [
            {"NAME": "new", "RATIO": round(1 - share, 4)},
            {"NAME": "old", "RATIO": share, "OPTS": ["DATASETS.TRAIN", [replay]]},
        ],
    ]  # fmt: skip


def write_config(cfg: CfgNode, path: Path, title: Sequence[str]) -> None:
    """Writes what differs from the defaults as a yaml, below lines of comment."""
    defaults = get_cfg()
    add_ovd_config(defaults)
    content = {"VERSION": cfg.VERSION, **_difference(cfg, defaults)}
    text = "".join(f"# {line}\n" for line in title)
    text += yaml.safe_dump(
        content, sort_keys=False, allow_unicode=True, width=100, default_flow_style=None
    )
    with atomic_write(path) as file:
        file.write(text.encode())


def _difference(cfg: CfgNode, defaults: CfgNode) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            if inner := _difference(value, defaults[key]):
                found[key] = inner
        elif value != defaults[key]:
            found[key] = list(value) if isinstance(value, tuple) else value
    return found
