"""What detectors that read words share: images of one size together, boxes in the frame of the
original image, a memory of encoded texts, and targets by the vocabulary's numbers.

Letters: N images, R detections, K classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances
from torch import Tensor, nn

from ovd_d2.errors import OVDError
from ovd_d2.language import Vocabulary, VocabularyLike
from ovd_d2.modeling.target_checks import EVALUATION, TargetChecks
from ovd_d2.structures.class_numbering import CLASS_NUMBERING
from ovd_d2.structures.grounding import TokenSpans


class WordDetector(nn.Module):
    """Images, and classes or the phrases of a caption -> boxes.

    A subclass gives ``device``, ``losses(batched_inputs)``, ``_detect(pixels, caption)`` or else
    ``_detect_samples(samples)``, and ``_set_vocabulary``, which sets ``vocabulary``. It keeps what
    it has made of texts in ``_encoded``, which is emptied whenever weights may have changed.

    Args:
        target_checks: knows how the data sets number their classes; None: as the vocabulary.
    """

    reads_captions: bool | None = None
    vocabulary: Vocabulary | None

    def __init__(self, target_checks: TargetChecks | None = None) -> None:
        super().__init__()
        self.target_checks = TargetChecks() if target_checks is None else target_checks
        self._encoded: dict[Any, Any] = {}
        self.register_load_state_dict_post_hook(_forget_encoded)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        raise NotImplementedError

    def set_vocabulary(self, vocabulary: VocabularyLike | None) -> None:
        """Swaps the classes to look for.

        Args:
            vocabulary: K classes, in any number; None: none.

        Raises:
            OVDError: names that cannot be had, or that the model cannot read; nothing changes then.
        """
        self._set_vocabulary(vocabulary)
        self.target_checks.honoured.add(EVALUATION)  # the caller knows what is asked for

    def _set_vocabulary(self, vocabulary: VocabularyLike | None) -> None:
        """As :meth:`set_vocabulary`, at building time too: an evaluation is checked against it."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> "WordDetector":
        self._encoded.clear()  # texts encoded by weights that may change now
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> "WordDetector":
        self._encoded.clear()  # they stay where the model was
        return super()._apply(*args, **kwargs)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        return self.losses(batched_inputs) if self.training else self.inference(batched_inputs)

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """``[{"instances": ...}]`` with ``pred_boxes``, ``scores`` in 0..1 and ``pred_classes``,
        best first, in the frame that ``height`` and ``width`` of a sample name."""
        groups: dict[Any, list[int]] = {}
        for i, sample in enumerate(batched_inputs):  # none is padded because of another
            kind = i if self._has_caption(sample) else "classes"
            groups.setdefault((kind, tuple(sample["image"].shape)), []).append(i)
        if any(kind == "classes" for kind, _ in groups):
            self._before_classes()
        results: dict[int, Instances] = {}
        for members in groups.values():
            samples = [batched_inputs[i] for i in members]
            results.update(zip(members, self._detect_samples(samples)))
        return [{"instances": results[i]} for i in range(len(batched_inputs))]

    def _before_classes(self) -> None:
        """Called before the vocabulary's classes are looked for.

        Raises:
            OVDError: there are none, or the data set that is evaluated numbers its own otherwise.
        """
        self.target_checks.before_inference(self._present_vocabulary())

    def _detect_samples(self, samples: list[dict[str, Any]]) -> list[Instances]:
        """Detections in samples of one size, and of one caption or none, in the frame that
        ``height`` and ``width`` of each name."""
        caption = self._caption_of(samples[0])
        found = self._detect([sample["image"] for sample in samples], caption)
        return [
            detector_postprocess(
                one, sample.get("height", one.image_size[0]), sample.get("width", one.image_size[1])
            )
            for one, sample in zip(found, samples)
        ]

    def _detect(self, pixels: list[Tensor], caption: TokenSpans | None) -> list[Instances]:
        """Detections in images of one size, in the frame of that size.

        Args:
            pixels: N of (C, H, W).
            caption: whose phrases are looked for, N = 1; None: the vocabulary.
        """
        raise NotImplementedError

    def _class_targets(
        self, samples: Sequence[dict[str, Any]]
    ) -> tuple[list[Instances], list[Tensor]]:
        """Targets of images of classes, their numbers those of the vocabulary; and per image the
        classes that are known to be absent where it has no box of them, int64, ascending.

        Those are all but the novel ones, or, where a sample has ``absent_classes``, of them what
        that list or a box names.
        """
        vocabulary = self._present_vocabulary()
        given = [sample["instances"].to(self.device) for sample in samples]
        self.target_checks.before_training(given, vocabulary, {})
        numbers = self.target_checks.class_numbers
        targets = numbers.of_vocabulary(given, vocabulary)
        known = [k for k, novel in enumerate(vocabulary.is_novel) if not novel]
        labelled = torch.tensor(known, dtype=torch.int64)
        negatives = []
        for sample, before, rows in zip(samples, given, targets):
            known = labelled
            if "absent_classes" in sample:
                absent = torch.as_tensor(sample["absent_classes"], dtype=torch.int64)
                if not before.has(CLASS_NUMBERING):
                    named = Instances(rows.image_size, gt_classes=absent.to(self.device))
                    absent = numbers.of_vocabulary([named], vocabulary)[0].gt_classes.cpu()
                known = labelled[torch.isin(labelled, torch.cat([absent, rows.gt_classes.cpu()]))]
            negatives.append(known)
        return targets, negatives

    def _present_vocabulary(self) -> Vocabulary:
        if self.vocabulary is None:
            raise OVDError(
                "The model has no classes yet (MODEL.OPEN_VOCAB.VOCABULARY later): call "
                "set_vocabulary first, or give every image a caption."
            )
        return self.vocabulary

    def _has_caption(self, sample: dict[str, Any]) -> bool:
        return bool(self.reads_captions) and "caption" in sample

    def _caption_of(self, sample: dict[str, Any]) -> TokenSpans | None:
        caption = sample.get("caption") if self.reads_captions else None
        if caption is None or isinstance(caption, TokenSpans):
            return caption
        raise OVDError(
            f"The caption of {sample.get('file_name', 'an image')} is a {type(caption).__name__}, "
            f"but {type(self).__name__} needs one whose phrases are marked (TokenSpans): set "
            "INPUT.MAPPER GroundingMapper."
        )

    @staticmethod
    def _check_phrases(samples: Sequence[dict[str, Any]], targets: Sequence[Instances]) -> None:
        """Raises OVDError if boxes of an image with a caption belong to no phrase."""
        if any("caption" in s and not t.has("gt_phrases") for s, t in zip(samples, targets)):
            raise OVDError(
                "An image has a caption, but its boxes do not say of which phrase they are "
                "(gt_phrases): set INPUT.MAPPER GroundingMapper for data sets of captions."
            )


def _forget_encoded(model: WordDetector, _: Any) -> None:
    """A hook: the texts were encoded with other weights."""
    model._encoded.clear()
