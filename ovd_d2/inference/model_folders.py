"""Trained models as folders: those inside this package, and those that ``ovd export`` writes.

A folder holds ``model.safetensors``, ``config.yaml``, ``facts.json`` (how it was trained, what it
reaches, digest of the weights), ``vocabulary.json`` (the classes it was trained on) and, if its
prompts are its own, ``prompts.txt`` or ``name_prompts.json``, and ``concepts.json`` if it has a
concept dictionary. If its classes share a probability, ``class_embeddings.safetensors`` has theirs,
so that other names are scored beside them without a delay. Of the facts these decide what a user
gets: ``score_threshold``, the default below which detections are dropped; ``learned_from``, what
kind of pictures it knows; ``attributes``, how far attributes can be relied on.
"""

import json
import os
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg

from ovd_d2.config import add_ovd_config
from ovd_d2.config_file import load_config
from ovd_d2.encoders.huggingface_detectors import SCHEME, zero_shot_facts
from ovd_d2.errors import OVDError
from ovd_d2.files.digests import file_digest
from ovd_d2.model_zoo import Entry, find_entry, model_path, zoo_names

from .arguments import check_score_threshold

MODELS = Path(__file__).with_name("models")
DEFAULT_MODEL = "mini"
WEIGHTS, CONFIG, FACTS = "model.safetensors", "config.yaml", "facts.json"
VOCABULARY, CONCEPTS = "vocabulary.json", "concepts.json"
KNOWN_ROWS = "class_embeddings.safetensors"
DICTIONARY_KEY = "MODEL.DETCLIP.DICTIONARY"
# Files in a folder that stand for what the keys named where the model was trained.
PROMPTS = {
    "prompts.txt": "MODEL.OPEN_VOCAB.PROMPTS",
    "name_prompts.json": "MODEL.GLIP.NAME_PROMPTS",
}


def packaged_models() -> list[str]:
    """Names of the models that ship with ovd_d2."""
    return sorted(path.parent.name for path in MODELS.glob(f"*/{FACTS}"))


def model_folder(name: str | os.PathLike) -> Path:
    """The folder of a packaged model or of a downloaded one of the model zoo, or ``name`` itself if
    it is the folder of an exported one.

    Raises:
        OVDError: none of these, or a model of the zoo that is not here yet.
    """
    if os.fspath(name) in packaged_models():
        return MODELS / name
    path = Path(name)
    if (path / FACTS).is_file():
        return path
    if path.is_dir():
        raise OVDError(f"{path} is no exported model, it lacks {FACTS}: make one by `ovd export`.")
    entry = find_entry(os.fspath(name)) if os.fspath(name) in zoo_names() else None
    if entry is not None and (entry.use or not entry.packaged):
        return _downloaded(entry)
    known = ", ".join(packaged_models()) or "none"
    raise OVDError(
        f"There is no model '{name}' (packaged: {known}): give one of these or of `ovd models "
        "list`, a folder that `ovd export` wrote, hf: and a detector of transformers, or a config "
        "and weights."
    )


def _downloaded(entry: Entry) -> Path:
    """The folder that ``ovd models download`` has made of a model of the zoo."""
    folder = model_path(entry)
    if (folder / FACTS).is_file():
        return folder
    if entry.use:
        raise OVDError(
            f"{entry.name} is no model that can be opened by its name: `ovd models info "
            f"{entry.name}` says how it is used."
        )
    raise OVDError(
        f"The model {entry.name} is not here yet: run `ovd models download {entry.name}`."
    )


def read_facts(folder: str | os.PathLike) -> dict[str, Any]:
    """What is known about the model in ``folder``; see :mod:`ovd_d2.inference.export`.

    Raises:
        OVDError: the file is missing or damaged.
    """
    path = Path(folder) / FACTS
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts.get("score_threshold") is not None:
            check_score_threshold(facts["score_threshold"])
        return {**facts, "sha256": str(facts["sha256"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OVDError(f"{path} cannot be read ({error!r}): export the model again.") from error


def weights_of(folder: Path) -> Path:
    """The weights in ``folder``, checked against the digest in its facts.

    Raises:
        OVDError: missing or damaged.
    """
    path = folder / WEIGHTS
    wanted = read_facts(folder)["sha256"]
    try:
        digest = file_digest(path, fresh=True)
    except OSError as error:
        raise OVDError(f"Cannot read the weights {path}: {error.strerror}.") from error
    if digest != wanted:
        raise OVDError(f"{path} is damaged (its sha256 differs from {FACTS}): export it again.")
    return path


def config_of(folder: Path) -> CfgNode:
    """The config in ``folder``; its vocabulary, prompts and dictionary are the files beside it."""
    cfg = load_config(os.fspath(folder / CONFIG))
    files = {VOCABULARY: "MODEL.OPEN_VOCAB.VOCABULARY", CONCEPTS: DICTIONARY_KEY, **PROMPTS}
    for file, key in files.items():
        if (folder / file).is_file():
            cfg.merge_from_list([key, str(folder / file)])
    return cfg


def known_rows_beside(weights: str | os.PathLike) -> Path | None:
    """The embeddings of a model's own classes in the folder of its weights; None without any."""
    path = Path(weights).with_name(KNOWN_ROWS) if os.fspath(weights) else None
    return path if path is not None and path.is_file() else None


def facts_of(name: str | os.PathLike) -> dict[str, Any]:
    """What is known about the model that ``name`` means, as in :func:`config_and_weights`.

    Raises:
        OVDError: there is none, or its facts are damaged.
    """
    if (of_hub := _of_transformers(name)) is None:
        return read_facts(model_folder(name))
    return {"score_threshold": zero_shot_facts(of_hub, f"--model {name}")[1].score_threshold}


def config_and_weights(name: str | os.PathLike) -> tuple[CfgNode, Path | str]:
    """The config, and the weights, "" where the model brings its own.

    Args:
        name: of a packaged model, the folder of an exported one, or "hf:" and a zero-shot detector
            of transformers.

    Raises:
        OVDError: there is no such model, or it is damaged.
    """
    if (of_hub := _of_transformers(name)) is None:
        folder = model_folder(name)
        return config_of(folder), weights_of(folder)
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "HuggingFaceDetector"
    cfg.MODEL.HUGGINGFACE.MODEL = of_hub
    cfg.MODEL.HUGGINGFACE.SCORE_THRESH_TEST = 0.0  # the caller's threshold counts
    cfg.MODEL.OPEN_VOCAB.VOCABULARY = "later"
    cfg.INPUT.FORMAT, cfg.INPUT.MIN_SIZE_TEST = "RGB", 0
    return cfg, ""


def _of_transformers(name: str | os.PathLike) -> str | None:
    """The hub name or folder of a detector of transformers; None: ``name`` means another model."""
    text = os.fspath(name)
    if text.startswith(SCHEME):
        return text.removeprefix(SCHEME)
    entry = find_entry(text) if text in zoo_names() and not (Path(text) / FACTS).is_file() else None
    return entry.hub if entry is not None and not entry.converter and entry.hub else None
