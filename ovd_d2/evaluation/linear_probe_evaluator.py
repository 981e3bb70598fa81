"""Linear probe of a model under evaluation: features of three data sets, then one classifier.

Letters: N images of this process, F feature width.
"""

import logging
import os
from typing import Any

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor
from tqdm import tqdm

from ovd_d2.checkpoint import read_state_dict, write_state_dict
from ovd_d2.errors import OVDError
from ovd_d2.evaluation.linear_probe import MOST_FITS, linear_probe

logger = logging.getLogger(__name__)


class LinearProbeEvaluator(DatasetEvaluator):
    """Top-1 accuracy of a logistic regression on frozen image features (Radford et al. 2021,
    section 3.2; see :mod:`ovd_d2.evaluation.linear_probe`).

    An input is a dict with the true class under ``label`` (int), an output one with
    ``image_features`` (F,). Every process writes its features to
    "features_DATASET_RANK.pth" in ``output_dir``, a folder that all processes see. For the data
    sets ``train`` and ``validation`` that is all; for any other the main process fits the
    classifier, and ``evaluate()`` returns ``{"linear_probe": {"top1", "validation_top1", "C"}}``,
    accuracies in percent.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str,
        *,
        train: str,
        validation: str,
        distributed: bool = True,
    ) -> None:
        """
        Args:
            dataset_name: whose images come.
            output_dir: folder of the features; it is made.
            train: data set that the classifier learns; evaluated before ``dataset_name``.
            validation: data set that chooses its strength C and then is learned too.
            distributed: with all processes; False: this one alone.
        """
        self._dataset_name = dataset_name
        self._output_dir = output_dir
        self._train = train
        self._validation = validation
        self._ranks = comm.get_world_size() if distributed else 1
        self._rank = comm.get_rank() if distributed else 0
        self.reset()

    def reset(self) -> None:
        """Forgets all images."""
        self._features: list[Tensor] = []
        self._labels: list[int] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Takes a batch; images with the label -1 are left out."""
        for image, output in zip(inputs, outputs, strict=True):
            if int(image["label"]) >= 0:
                self._features.append(output["image_features"].detach().float().cpu())
                self._labels.append(int(image["label"]))

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """See the class; None on processes other than the main one, {} for ``train`` and
        ``validation``.

        Raises:
            OVDError: no features of ``train`` or ``validation``, or nothing to fit.
        """
        os.makedirs(self._output_dir, exist_ok=True)
        features = torch.stack(self._features) if self._features else torch.zeros(0, 0)
        content = {"features": features, "labels": torch.tensor(self._labels, dtype=torch.int64)}
        write_state_dict(self._file(self._dataset_name, self._rank), content)
        comm.synchronize()
        if self._rank:
            return None
        if self._dataset_name in (self._train, self._validation):
            return {}
        arrays = [self._read(n) for n in (self._train, self._validation, self._dataset_name)]
        logger.info(
            "Linear probe of %d features: %d images to learn, %d to choose C, %d to report. Up to "
            "%d logistic regressions.",
            arrays[0][0].shape[1], *(len(labels) for _, labels in arrays), MOST_FITS,
        )  # fmt: skip
        with tqdm(desc="logistic regressions", unit="fit", total=MOST_FITS, delay=5.0) as bar:
            found = linear_probe(*arrays, note_fit=bar.update)
        logger.info("Linear probe: %s", found)
        return {"linear_probe": found}

    def _file(self, dataset: str, rank: int) -> str:
        name = dataset.replace(os.sep, "-").replace(":", "-")
        return os.path.join(self._output_dir, f"features_{name}_{rank}.pth")

    def _read(self, dataset: str) -> tuple[np.ndarray, np.ndarray]:
        """Features (N, F) and labels (N,) of all processes."""
        parts = []
        for rank in range(self._ranks):
            path = self._file(dataset, rank)
            if not os.path.isfile(path):
                raise OVDError(
                    f"There are no features of '{dataset}' ({path}): evaluate it before "
                    f"'{self._dataset_name}', in the same run."
                )
            parts.append(read_state_dict(path))
        parts = [part for part in parts if len(part["labels"])]
        if not parts:
            raise OVDError(f"'{dataset}' has no labelled image, so there is no linear probe.")
        features = torch.cat([part["features"] for part in parts])
        return features.numpy(), torch.cat([part["labels"] for part in parts]).numpy()
