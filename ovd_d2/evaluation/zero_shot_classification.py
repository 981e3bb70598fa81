"""Zero-shot image classification: top-1 and top-5 of base, novel and all classes.

Shapes: N images, K classes, D embedding width, P prompts.
"""

import itertools
import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor
from torch.nn.functional import normalize

from ovd_d2.errors import OVDError
from ovd_d2.evaluation.splits import results_table

logger = logging.getLogger(__name__)


def ensemble_prompts(embeddings: Tensor) -> Tensor:
    """One unit vector per class from the embeddings of several prompts.

    Each embedding is normalised, their mean is taken and normalised again, as in CLIP (Radford et
    al. 2021, section 3.1.4).

    Args:
        embeddings: (P, K, D), any scale; or (K, D) for a single prompt.

    Returns:
        (K, D) float32, L2-normalised.
    """
    embeddings = normalize(embeddings.float(), dim=-1)
    return embeddings if embeddings.dim() == 2 else normalize(embeddings.mean(dim=0), dim=-1)


class ZeroShotClassificationEvaluator(DatasetEvaluator):
    """Accuracy of an image-text model in naming images, over all K names at once.

    An input is a dict with the true class under ``label`` (int, 0..K-1); inputs with the label -1
    are left out. An output is a dict with ``logits`` (K,), or with ``image_embedding`` (D,) of any
    scale, which is compared with the class embeddings by cosine.

    ``evaluate()`` returns ``{"classification": metrics}`` with top1, top5, mean_class_top1 (the
    mean over classes with images of their top-1) and, given ``is_novel``, top1_base, top1_novel,
    top5_base and top5_novel: percentages in [0, 100], nan for a split without images. With K < 5
    the top-5 accuracy is 100. Of equal logits the true class counts as the last, so that a model
    that cannot tell the classes apart gets no credit.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        class_embeddings: Tensor | None = None,
        is_novel: Sequence[bool] | None = None,
        distributed: bool = True,
    ) -> None:
        """Prepares the class embeddings.

        Args:
            class_names: the K names.
            class_embeddings: (K, D), or (P, K, D) for an ensemble of P prompts; needed if the model
                gives image embeddings.
            is_novel: (K,) to report base and novel classes apart.
            distributed: gather the results of all processes on the main one.

        Raises:
            OVDError: the numbers of classes differ, or an embedding is not finite.
        """
        self._class_names = list(class_names)
        self._distributed = distributed
        self._class_embeddings = None
        if class_embeddings is not None:
            self._class_embeddings = ensemble_prompts(class_embeddings).cpu()
            self._check_length("class_embeddings", len(self._class_embeddings))
            if not bool(torch.isfinite(self._class_embeddings).all()):
                raise OVDError("class_embeddings has values that are not finite: embed again.")
        self._is_novel = None
        if is_novel is not None:
            self._is_novel = torch.as_tensor(is_novel, dtype=torch.bool)
            self._check_length("is_novel", len(self._is_novel))
        self.reset()

    def _check_length(self, what: str, length: int) -> None:
        if length != len(self._class_names):
            raise OVDError(
                f"{what} has {length} classes but there are {len(self._class_names)} class names: "
                "they must agree."
            )

    def reset(self) -> None:
        """Forgets all images."""
        self._ranks: list[tuple[int, int]] = []  # true class, and how many classes rank above it

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Takes a batch: dicts with ``label``, and dicts with ``logits`` or ``image_embedding``.

        Raises:
            OVDError: a label or the width of an output does not fit the classes.
        """
        for image, output in zip(inputs, outputs, strict=True):
            label = int(image["label"])
            if label == -1:
                continue
            if not 0 <= label < len(self._class_names):
                raise OVDError(
                    f"Image {image.get('file_name', image.get('image_id'))} has the label {label} "
                    f"but there are {len(self._class_names)} classes."
                )
            logits = self._logits(output)
            others = torch.arange(len(logits)) != label
            # "not less" and not "greater or equal": a nan counts as ranked above too.
            self._ranks.append((label, int((~(logits < logits[label]) & others).sum())))

    def _logits(self, output: dict[str, Any]) -> Tensor:
        if "logits" in output:
            logits = output["logits"].detach().float().cpu()
            self._check_length("An output's logits", len(logits))
            return logits
        if self._class_embeddings is None:
            raise OVDError(
                "The model gives image embeddings and no logits: pass class_embeddings to "
                "ZeroShotClassificationEvaluator."
            )
        embedding = normalize(output["image_embedding"].detach().float().cpu(), dim=-1)
        if embedding.shape != self._class_embeddings.shape[1:]:
            raise OVDError(
                f"The image embedding has shape {tuple(embedding.shape)} but the class embeddings "
                f"have width {self._class_embeddings.shape[1]}: use one model for both."
            )
        return self._class_embeddings @ embedding

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """The accuracies; None on processes other than the main one, {} without images."""
        ranks = self._ranks
        if self._distributed:
            comm.synchronize()
            ranks = list(itertools.chain(*comm.gather(ranks, dst=0)))
            if not comm.is_main_process():
                return None
        if not ranks:
            logger.warning("No image with a label was evaluated.")
            return {}
        labels, above = torch.tensor(ranks).T
        metrics = {f"top{k}": _percent(above < k) for k in (1, 5)}
        per_class = [_percent(above[labels == c] < 1) for c in labels.unique()]
        metrics["mean_class_top1"] = sum(per_class) / len(per_class)
        rows: dict[str, dict[str, Any]] = {"all": {"images": len(labels), **metrics}}
        if self._is_novel is not None:
            novel = self._is_novel[labels]
            for name, chosen in (("base", ~novel), ("novel", novel)):
                row = {f"top{k}": _percent(above[chosen] < k) for k in (1, 5)}
                rows[name] = {"images": int(chosen.sum()), **row}
                metrics.update({f"{key}_{name}": value for key, value in row.items()})
        logger.info(
            "Zero-shot classification over %d classes:\n%s",
            len(self._class_names),
            results_table(rows, ["images", "top1", "top5", "mean_class_top1"]),
        )
        return {"classification": metrics}


def _percent(hits: Tensor) -> float:
    return hits.float().mean().item() * 100 if hits.numel() else math.nan
