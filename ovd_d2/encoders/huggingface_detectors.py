"""Object detectors of transformers: which families can be asked in words, and how one is opened."""

from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ovd_d2.encoders.huggingface import model_folder, no_progress_bar, read_json
from ovd_d2.errors import OVDError, reason

SCHEME = "hf:"  # before a name where a model of transformers is one choice among others
ZERO_SHOT_CLASSES = ("AutoModelForZeroShotObjectDetection", "AutoProcessor")


class ZeroShotFacts(NamedTuple):
    """What is known about a family of zero-shot detectors.

    Attributes:
        family: whose outputs the model's have the form of.
        prompt: sentence around a name in transformers' documentation.
        score_threshold: below it the documentation's examples drop detections.
        nms_threshold: IoU of the family's own suppression within a class; 1: it has none.
    """

    family: str
    prompt: str
    score_threshold: float
    nms_threshold: float


_DINO = ZeroShotFacts("grounding-dino", "{}", 0.3, 1.0)
_OWL = ZeroShotFacts("owl", "a photo of a {}", 0.1, 1.0)
ZERO_SHOT: dict[str, ZeroShotFacts] = {
    "grounding-dino": _DINO,
    "mm-grounding-dino": _DINO,  # LLMDet too
    "omdet-turbo": ZeroShotFacts("omdet-turbo", "{}", 0.3, 0.5),
    "owlv2": _OWL,
    "owlvit": _OWL,
}
"""By the ``model_type`` of a model's config.json."""


def model_type_of(folder: Path) -> str:
    """The ``model_type`` in config.json; "unknown" if it has none.

    Raises:
        OVDError: the file is missing or damaged.
    """
    config = read_json(folder / "config.json")
    return str(config.get("model_type", "unknown")) if isinstance(config, dict) else "unknown"


def zero_shot_facts(name_or_folder: str, asked: str) -> tuple[Path, ZeroShotFacts]:
    """The folder of a zero-shot detector, downloaded if need be, and the facts of its family.

    Args:
        name_or_folder: a model on the hub, or a folder that transformers saved, with or without
            "hf:" before it.
        asked: what named it, for messages.

    Raises:
        OVDError: there is no such model, or it is of no family of :data:`ZERO_SHOT`.
    """
    name = name_or_folder.removeprefix(SCHEME)
    if not name:
        raise OVDError(f"{asked} names no model: add its name on the Hugging Face hub or a folder")
    try:
        folder = model_folder(name)
    except OVDError as error:
        raise OVDError(f"{asked} cannot be opened: {error}") from error
    model_type = model_type_of(folder)
    if model_type not in ZERO_SHOT:
        raise OVDError(
            f"{asked} cannot be asked in words: its model_type is {model_type}, zero-shot "
            f"detectors are {', '.join(sorted(ZERO_SHOT))}"
        )
    return folder, ZERO_SHOT[model_type]


def load_detector(
    folder: Path, asked: str, auto_classes: tuple[str, str] = ZERO_SHOT_CLASSES
) -> tuple[nn.Module, Any]:
    """Model (fp32, in eval mode, on the CPU) and processor. No code of a model's repository is run.

    Args:
        folder: which transformers saved.
        asked: what named it, for messages.
        auto_classes: of transformers, for the model and for the processor.

    Raises:
        OVDError: they cannot be loaded.
    """
    try:
        import transformers

        model_class, processor_class = (getattr(transformers, name) for name in auto_classes)
        with no_progress_bar(transformers):
            processor = processor_class.from_pretrained(folder, trust_remote_code=False)
            model, report = model_class.from_pretrained(
                folder, trust_remote_code=False, output_loading_info=True
            )
    except Exception as error:  # transformers raises anything on what it does not know
        raise OVDError(
            f"{asked} cannot be used ({reason(error)}); give a folder with model and processor of "
            "an object detector, as transformers saves them"
        ) from error
    lacking = {*report["missing_keys"], *(str(key[0]) for key in report["mismatched_keys"])}
    if missing := sorted(lacking & dict(model.named_parameters()).keys()):
        raise OVDError(
            f"{asked} cannot be used: the weights in {folder} lack {missing[0]} ({len(missing)} "
            "missing); give the complete model"
        )
    return model.float().eval(), processor


def dino_phrase(text: str) -> str:
    """A phrase as Grounding DINO was trained to read it: lower case, without full stops and
    question marks, which end a phrase there."""
    return " ".join(text.lower().replace(".", " ").replace("?", " ").split())
