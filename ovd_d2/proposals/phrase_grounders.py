"""Detectors that find the phrases of a caption, for GLIP's self-training (Li et al. 2022, 3.3).

Letters: P phrases of a caption, Ri boxes of one phrase on image i, H, W height and width.
"""

from typing import Protocol

import torch
from torch import Tensor
from torchvision.ops import nms

from ovd_d2.config_file import load_config
from ovd_d2.data.model_kind import reads_captions
from ovd_d2.errors import OVDError
from ovd_d2.inference.open_detector import (
    inference_config,
    open_detector,
    run_files,
    to_sample,
    trained_vocabulary,
)
from ovd_d2.modeling.open_vocabulary import part_with
from ovd_d2.pseudo_labelling import Found
from ovd_d2.structures import TokenSpans

from .own_detector import model_name
from .queries import QueryDetector

# Of a detector that gives a box per query slot; models that read captions have their own.
NMS_IOU = 0.5


class PhraseGrounder(Protocol):
    """Finds the phrases of a caption in an image.

    Attributes:
        name: for the file of its boxes; names weights by their digest.
    """

    name: str

    def __call__(self, image: Tensor, caption: TokenSpans) -> list[Found]:
        """Boxes for each of the P phrases.

        Args:
            image: (3, H, W) uint8, RGB, turned as its EXIF orientation says.
            caption: the text, and the phrases to find, one or more.

        Returns:
            Per phrase (Ri, 4) float32 absolute xyxy in pixels of ``image``, scores (Ri,) float32
            in 0..1, best first, without duplicates; none where nothing was found.
        """
        ...


class CaptionReader:
    """A :class:`PhraseGrounder` out of a model that reads captions: one pass for an image and its
    whole caption, whose other words tell GLIP what a phrase means; DetCLIP reads the phrases.

    Of a caption that is longer than the model reads, the phrases behind the cut get no box.

    Args:
        checkpoint: weights of train_net.py.
        least: lowest score that will be of use; the config's own threshold is lowered to it.
        device: where to compute.
        config_file: the yaml of the model; "": the config.yaml beside the weights.
        asked: what named the checkpoint, for messages; "": the checkpoint.

    Raises:
        OVDError: no config or checkpoint, weights that do not fit, or a model that reads no
            captions; named.
    """

    def __init__(
        self,
        checkpoint: str,
        least: float = 0.0,
        device: str = "cpu",
        config_file: str = "",
        asked: str = "",
    ) -> None:
        path, config = run_files(checkpoint, config_file, asked=asked)
        cfg = load_config(str(config))
        self._cfg = inference_config(cfg, device)
        if not reads_captions(self._cfg):
            raise OVDError(
                f"{asked or checkpoint} is a {self._cfg.MODEL.META_ARCHITECTURE}, which finds "
                "classes and reads no captions: give a GLIP, DetCLIP or MAVL "
                "(MODEL.META_ARCHITECTURE), or a zero-shot detector of transformers (hf:MODEL)"
            )
        for keys in (self._cfg.MODEL.GLIP, self._cfg.MODEL.DETCLIP, self._cfg.MODEL.MAVL):
            keys.SCORE_THRESH_TEST = min(keys.SCORE_THRESH_TEST, least)
        self._model = open_detector(self._cfg, path, trained_vocabulary(cfg))
        self._cuts = part_with(self._model, "cut_to_fit")
        self.name = model_name(path, config, config_file)

    @torch.no_grad()
    def __call__(self, image: Tensor, caption: TokenSpans) -> list[Found]:
        """Boxes of one image, as :class:`PhraseGrounder` defines them."""
        read = caption if self._cuts is None else self._cuts.cut_to_fit(caption)
        none = (torch.zeros(0, 4), torch.zeros(0))
        if not len(read):
            return [none] * len(caption)
        sample = {**to_sample(image.permute(1, 2, 0).numpy(), self._cfg), "caption": read}
        (output,) = self._model([sample])
        found = output["instances"].to("cpu")
        rows = [found[found.pred_classes == phrase] for phrase in range(len(read))]
        behind = len(caption) - len(read)
        return [(one.pred_boxes.tensor, one.scores) for one in rows] + [none] * behind


class AskedForPhrases:
    """A :class:`PhraseGrounder` out of a detector that is asked in words: each phrase is a query of
    its own, and the rest of the caption is not read. NMS at an IoU of 0.5 for each phrase.

    Args:
        detector: is asked.
    """

    def __init__(self, detector: QueryDetector) -> None:
        self._detector = detector
        self.name = detector.name

    def __call__(self, image: Tensor, caption: TokenSpans) -> list[Found]:
        """Boxes of one image, as :class:`PhraseGrounder` defines them."""
        found = self._detector(image, caption.phrases())
        kept = (nms(boxes, scores, NMS_IOU) for boxes, scores in found)
        return [(boxes[rows], scores[rows]) for (boxes, scores), rows in zip(found, kept)]


def build_phrase_grounder(
    spec: str, least: float, *, config_file: str = "", batch: int = 0, device: str = "cpu"
) -> PhraseGrounder:
    """The teacher of GLIP's self-training.

    Args:
        spec: "model:CHECKPOINT" or "hf:NAME_OR_FOLDER".
        least: lowest score that will be of use.
        config_file: the yaml of "model:", if it is not beside the checkpoint.
        batch: phrases at once through "hf:"; 0: as the device can.
        device: where it computes.

    Raises:
        OVDError: unknown kind, or the model cannot be used.
    """
    kind, _, rest = spec.partition(":")
    if not rest or kind not in ("hf", "model"):
        raise OVDError(
            f"--detector {spec} cannot be asked for phrases: use model:CHECKPOINT, a GLIP, "
            "DetCLIP or MAVL, or hf:MODEL, a zero-shot detector of transformers"
        )
    if kind == "hf":
        from .huggingface_detector import open_huggingface_detector

        asked = f"--detector {spec}"
        detector = open_huggingface_detector(rest, asked, device, batch=batch, queries=True)
        return AskedForPhrases(detector)
    checkpoint, _, config = rest.partition(",config=")
    asked = f"--detector model:{checkpoint}"
    return CaptionReader(checkpoint, least, device, config_file or config, asked)
