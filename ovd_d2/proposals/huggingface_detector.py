"""Opens a detector of transformers."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from ovd_d2.encoders.huggingface import encoder_id, model_folder
from ovd_d2.errors import OVDError


@dataclass(frozen=True)
class HuggingFaceDetector:
    """Model and processor.

    Attributes:
        model: in eval mode, without gradients.
        processor: makes its inputs, and boxes of its outputs.
        kind: "owlv2", "grounding-dino", "detr", ...
        needs_words: whether it has to be asked for something.
        identity: "hf:KIND@DIGEST".
    """

    model: nn.Module
    processor: Any
    kind: str
    needs_words: bool
    identity: str


def load_huggingface_detector(
    name_or_folder: str, option: str, device: str = "cpu"
) -> HuggingFaceDetector:
    """No code of a model's repository is run.

    Args:
        name_or_folder: a model on the hub, or a folder that transformers saved.
        option: of the command line that named it, for the message.
        device: where to compute.

    Raises:
        OVDError: not a detector, or it cannot be loaded.
    """
    folder = model_folder(name_or_folder)
    try:
        from transformers import (
            AutoImageProcessor,
            AutoModelForObjectDetection,
            AutoModelForZeroShotObjectDetection,
            AutoProcessor,
        )
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES as NEED_WORDS,
        )

        identity = encoder_id(folder)
        kind = identity.removeprefix("hf:").partition("@")[0]
        needs_words = kind in NEED_WORDS
        if needs_words:
            model_class, processor_class = AutoModelForZeroShotObjectDetection, AutoProcessor
        else:
            model_class, processor_class = AutoModelForObjectDetection, AutoImageProcessor
        processor = processor_class.from_pretrained(folder, trust_remote_code=False)
        model = model_class.from_pretrained(folder, trust_remote_code=False)
    except OVDError:
        raise
    except Exception as error:  # transformers raises anything on what it does not know
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OVDError(
            f"{option} hf:{name_or_folder} cannot be used ({reason}); give a folder with model and "
            "processor of an object detector, as transformers saves them"
        ) from error
    model = model.eval().requires_grad_(False).to(device)
    return HuggingFaceDetector(model, processor, kind, needs_words, identity)
