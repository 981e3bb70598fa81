"""Where the boxes of a region store come from: annotations, a file, an RPN or a Hugging Face model.

Letters: Ri regions of image i, N images.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor

from ovd_d2.config_file import load_config
from ovd_d2.data.datasets.annotation_files import read_json
from ovd_d2.data.datasets.record_check import checked_results
from ovd_d2.data.held_out import novel_mask
from ovd_d2.data.mixing import training_datasets
from ovd_d2.errors import OVDError
from ovd_d2.files.digests import file_digest
from ovd_d2.inference.open_detector import inference_config, open_detector, run_files, to_sample

logger = logging.getLogger(__name__)


class ProposalSource(Protocol):
    """Proposes boxes, image by image.

    Attributes:
        name: for a region store's facts; names files and weights by their digests.
        has_scores: whether every image's proposals carry scores.
    """

    name: str
    has_scores: bool

    def __call__(self, record: dict[str, Any], image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Boxes of one image.

        Args:
            record: of the image, in Detectron2's dataset format.
            image: (3, H, W) uint8, RGB, as in its file.

        Returns:
            (Ri, 4) float32 absolute xyxy in pixels of ``image``, best first, and their scores (Ri,)
            float32, higher is better; None if ``has_scores`` is False.
        """
        ...


def build_proposal_source(
    spec: str, records: Sequence[dict[str, Any]], topk: int, device: str = "cpu"
) -> ProposalSource:
    """The source that ``spec`` asks for.

    Args:
        spec: "gt", "json:FILE", "rpn:CHECKPOINT" or "hf:NAME_OR_FOLDER".
        records: of the data set, in Detectron2's dataset format.
        topk: boxes to keep per image.
        device: where a detector computes.

    Raises:
        OVDError: unknown kind, or the file or model cannot be used.
    """
    kind, _, rest = spec.partition(":")
    if topk < 1:
        raise OVDError(f"--topk {topk}: keep at least one box per image")
    if spec == "gt":
        return GroundTruthProposals(topk)
    if not rest or kind not in ("json", "rpn", "hf"):
        raise OVDError(
            f"--proposals {spec} is unknown: use gt, json:FILE, rpn:CHECKPOINT or hf:MODEL"
        )
    if kind == "json":
        return FileProposals(rest, [record["image_id"] for record in records], topk)
    if kind == "rpn":
        return RPNProposals(rest, topk, device)
    from ovd_d2.proposals.huggingface_proposals import HuggingFaceProposals

    return HuggingFaceProposals(rest, topk, device)


class GroundTruthProposals:
    """The boxes of a data set's annotations, crowds left out; at most ``topk``, without scores."""

    has_scores = False

    def __init__(self, topk: int) -> None:
        self.name = f"gt, top {topk}"
        self._topk = topk

    def __call__(self, record: dict[str, Any], image: Tensor) -> tuple[Tensor, None]:
        """See :class:`ProposalSource`."""
        from detectron2.structures import BoxMode

        boxes = [
            BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
            for annotation in record.get("annotations", ())
            if not annotation.get("iscrowd", 0)
        ]
        return torch.tensor(boxes[: self._topk], dtype=torch.float32).view(-1, 4), None


class FileProposals:
    """Boxes of a json file as COCO's and LVIS's results are written.

    Args:
        path: a list of {"image_id", "bbox": [x, y, width, height]} with or without "score", or a
            dict whose "annotations" are one, as `ovd pseudo-label` writes it; everything else,
            categories too, is ignored.
        image_ids: of the data set; images without a box in the file have no region.
        topk: boxes to keep per image, best first; without scores the first ones of the file.

    Raises:
        OVDError: unreadable or of another format, scores for some of the boxes only, or not one
            box for an image of the data set.
    """

    def __init__(self, path: str, image_ids: Sequence[int | str], topk: int) -> None:
        try:
            content = read_json(path)
            digest = file_digest(path)
        except (OSError, ValueError) as error:
            raise OVDError(f"proposals cannot be read from {path} ({error})") from error
        by_image: dict[int | str, list[tuple[list[float], float | None]]] = {}
        for entry in checked_results(content, path, scored=False):
            row = (entry["bbox"], entry.get("score"))
            by_image.setdefault(entry["image_id"], []).append(row)
        scored = {score is not None for rows in by_image.values() for _, score in rows}
        if len(scored) > 1:
            raise OVDError(f"{path} has scores for some of its boxes only; give all or none")
        self.has_scores = scored == {True}
        known = set(image_ids)
        strange = [image_id for image_id in by_image if image_id not in known]
        if by_image and len(strange) == len(by_image):
            raise OVDError(
                f"{path} has no box for any image of the data set (its first image id is "
                f"{strange[0]!r}); give the proposals of this data set"
            )
        if strange:
            logger.warning(
                "%s has boxes for %d images that the data set does not have.", path, len(strange)
            )
        self.name = f"json:{Path(path).name}@{digest[:12]}, top {topk}"
        self._topk = topk
        self._by_image = by_image

    def __call__(self, record: dict[str, Any], image: Tensor) -> tuple[Tensor, Tensor | None]:
        """See :class:`ProposalSource`."""
        rows = self._by_image.get(record["image_id"], [])
        boxes = torch.tensor([box for box, _ in rows], dtype=torch.float32).view(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        if not self.has_scores:
            return boxes[: self._topk], None
        return best(boxes, torch.tensor([score for _, score in rows]), self._topk)


def best(boxes: Tensor, scores: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """The ``topk`` rows of highest score, best first; ties in their order."""
    order = scores.argsort(descending=True, stable=True)[:topk]
    return boxes[order], scores[order]


class RPNProposals:
    """Top proposals of the RPN of a detector that ``train_net.py`` trained; no class is used.

    Only backbone and RPN are built, so neither text encoder nor vocabulary is needed. Scores are
    the RPN's objectness as a probability.

    Args:
        checkpoint: weights with the run's ``config.yaml`` beside them.
        topk: boxes to keep per image after NMS; replaces the config's numbers.
        device: where to compute.
        config_file: instead of the config.yaml beside the weights.

    Raises:
        OVDError: no config or checkpoint, or weights that do not fit; named.
    """

    has_scores = True

    def __init__(
        self, checkpoint: str, topk: int, device: str = "cpu", config_file: str = ""
    ) -> None:
        path, config = run_files(checkpoint, config_file, asked=f"--proposals rpn:{checkpoint}")
        cfg = load_config(str(config))
        _warn_unless_base_only(cfg, checkpoint)
        cfg = inference_config(cfg, device)
        cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"  # nothing behind the RPN is built
        cfg.MODEL.RPN.POST_NMS_TOPK_TEST = topk
        cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = max(cfg.MODEL.RPN.PRE_NMS_TOPK_TEST, topk)
        self._cfg, self._model = cfg, open_detector(cfg, path)
        self.name = f"rpn:{path.parent.name}/{path.name}@{file_digest(path)[:12]}, top {topk}"

    @torch.no_grad()
    def __call__(self, record: dict[str, Any], image: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`ProposalSource`."""
        (output,) = self._model([to_sample(image.permute(1, 2, 0).numpy(), self._cfg)])
        found = output["proposals"].to("cpu")
        return found.proposal_boxes.tensor, found.objectness_logits.sigmoid()


def _warn_unless_base_only(cfg: CfgNode, checkpoint: str) -> None:
    """Proposals of a detector that saw boxes of novel classes would leak them to the student."""
    if cfg.DATASETS.NOVEL_NAMES:
        return  # they were held out
    for name in training_datasets(cfg):
        metadata = MetadataCatalog.get(name) if name in MetadataCatalog.list() else None
        if metadata is None or not any(metadata.get("is_novel") or novel_mask(cfg, name)):
            logger.warning(
                "%s was trained on %s, which is not known to hold boxes of base classes only: its "
                "proposals may know novel classes.",
                checkpoint,
                name,
            )
