"""Zero-shot detectors of transformers as models of Detectron2, with any vocabulary.

Letters: N images, P prompts, Q boxes, Kp classes of a prompt, k candidates, K classes.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import box_convert

from ovd_d2.encoders.huggingface_detectors import load_detector, zero_shot_facts
from ovd_d2.errors import OVDError
from ovd_d2.language import Vocabulary, VocabularyLike, as_vocabulary, configured_vocabulary
from ovd_d2.modeling.dense_heads.candidates import Candidates, without_duplicates
from ovd_d2.modeling.target_checks import TargetChecks
from ovd_d2.modeling.tuning import LORA
from ovd_d2.modeling.zero_shot import FAMILIES, ImageBatch, TextGroup
from ovd_d2.structures.grounding import TokenSpans

from .word_detector import WordDetector

KEY = "MODEL.HUGGINGFACE.MODEL"


@META_ARCH_REGISTRY.register()
class HuggingFaceDetector(WordDetector):
    """Grounding DINO, MM-Grounding-DINO (LLMDet), OWL-ViT, OWLv2 or OmDet-Turbo.

    Input: Detectron2's list of dicts, with ``image`` (3, H, W) uint8 as the data set has it; the
    model's own processor resizes and normalises it. Inference gives ``[{"instances": ...}]`` with
    ``pred_boxes``, ``scores`` in 0..1 and ``pred_classes``, best first: each pair of a box and a
    class by itself, so a box may come with several classes. Training (Grounding DINO and its kin)
    gives the losses of transformers, ``loss_*``.

    Grounding DINO and its kin read captions too: a sample with a ``caption`` (TokenSpans) is asked
    for its phrases, and ``pred_classes`` are their places in it.

    A vocabulary of any size is split into as many prompts as it needs. What sees the image alone
    runs once per image, what sees the words alone once per vocabulary.
    """

    recipes: ClassVar[dict[str, tuple]] = {
        "full": ("SOLVER.BASE_LR", 1e-5),
        "frozen": (
            "SOLVER.BASE_LR", 1e-4, "MODEL.TUNE.FROZEN",
            ["family.model.model.backbone.", "family.model.model.text_backbone."],
        ),
        "lora": ("SOLVER.BASE_LR", 2e-4, *LORA),
    }  # fmt: skip
    brings_weights = True  # without MODEL.WEIGHTS it is a trained model all the same
    share_exponents = None  # names are scored one by one

    @configurable
    def __init__(
        self,
        *,
        model: str,
        vocabulary: VocabularyLike | None,
        device: str = "cpu",
        prompt: str = "",
        names_per_prompt: int = 0,
        class_score: str = "max",
        pairs_at_once: int = 4,
        score_threshold: float = 0.05,
        candidates_per_prompt: int = 1000,
        nms_threshold: float = 0.0,
        max_detections: int = 100,
        max_negatives: int = 85,
        all_negatives_probability: float = 0.5,
        input_format: str = "RGB",
        target_checks: TargetChecks | None = None,
    ) -> None:
        """
        Args:
            model: on the Hugging Face hub, or a folder that transformers saved.
            vocabulary: the K classes to start with; None: none before :meth:`set_vocabulary`.
            device: where it computes.
            prompt: sentence with {} for the name (OWL); "": the family's own.
            names_per_prompt: most names of a prompt; 0: as many as fit.
            class_score: "max" or "mean" of the tokens of a name (Grounding DINO).
            pairs_at_once: most pairs of image and prompt in the model at test time.
            score_threshold: scores must be above it.
            candidates_per_prompt: best pairs of box and class that go on.
            nms_threshold: boxes of a class with a higher IoU are suppressed; 1: none; 0: the
                family's own.
            max_detections: of an image; -1: all.
            max_negatives: see :meth:`CaptionPrompts.for_training`.
            all_negatives_probability: see there.
            input_format: "RGB" or "BGR", of the images.
            target_checks: knows how the data sets number their classes; None: as the vocabulary.

        Raises:
            OVDError: a model that is not there or of no family, or a name that no prompt can hold.
        """
        super().__init__(target_checks)
        asked = f"{KEY} {model}"
        folder, facts = zero_shot_facts(model, asked)
        self.family = FAMILIES[facts.family](
            *load_detector(folder, asked), prompt=prompt or facts.prompt, class_score=class_score
        ).to(device)
        self.reads_captions = self.family.reads_captions or None
        self.class_embedder = self._own_embedder = self.family.class_embedder(folder)
        self.names_per_prompt = names_per_prompt
        self.pairs_at_once = pairs_at_once
        self.score_threshold = score_threshold
        self.candidates_per_prompt = candidates_per_prompt
        self.nms_threshold = nms_threshold or facts.nms_threshold
        self.max_detections = max_detections
        self.negatives = {
            "max_negatives": max_negatives,
            "all_negatives_probability": all_negatives_probability,
        }
        self.input_format = input_format
        self._set_vocabulary(vocabulary)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """What ``MODEL.HUGGINGFACE`` names.

        Raises:
            OVDError: it names no model.
        """
        keys = cfg.MODEL.HUGGINGFACE
        if not keys.MODEL:
            raise OVDError(
                f"{KEY} is empty: name a zero-shot detector, such as "
                "IDEA-Research/grounding-dino-tiny, or its folder."
            )
        return {
            "model": keys.MODEL,
            "vocabulary": configured_vocabulary(
                cfg.MODEL.OPEN_VOCAB.VOCABULARY, cfg.DATASETS.TRAIN, cfg.DATASETS.NOVEL_NAMES
            ),
            "device": cfg.MODEL.DEVICE,
            "prompt": keys.PROMPT,
            "names_per_prompt": keys.NAMES_PER_PROMPT,
            "class_score": keys.CLASS_SCORE,
            "pairs_at_once": keys.PAIRS_AT_ONCE,
            "score_threshold": keys.SCORE_THRESH_TEST,
            "candidates_per_prompt": keys.TOPK_CANDIDATES_TEST,
            "nms_threshold": keys.NMS_THRESH_TEST,
            "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
            "max_negatives": keys.MAX_NEGATIVES,
            "all_negatives_probability": keys.ALL_NEGATIVES_PROB,
            "input_format": cfg.INPUT.FORMAT,
            "target_checks": TargetChecks(cfg),
        }

    @property
    def can_learn(self) -> bool:
        """Whether it can be trained."""
        return self.family.learns

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.family.device

    @property
    def detection_choice(self) -> "HuggingFaceDetector":
        """See :class:`~ovd_d2.modeling.detection_choice.DetectionChoice`."""
        return self

    def threshold_for(self, score: float) -> float:
        """See :class:`~ovd_d2.modeling.detection_choice.DetectionChoice`."""
        return score

    def _set_vocabulary(self, vocabulary: VocabularyLike | None) -> None:
        classes = None if vocabulary is None else as_vocabulary(vocabulary)
        prompts = []
        if classes is not None and self.class_embedder is self._own_embedder:
            prompts = self.family.prompts_of(classes.names, self.names_per_prompt)
        elif classes is not None:
            rows = self.class_embedder.embed(classes).embeddings
            prompts = self.family.prompts_of_rows(rows, self.names_per_prompt)
        self.vocabulary: Vocabulary | None = classes
        self._prompts = prompts
        self._encoded.clear()

    def losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """See the class. A caption has the classes of an image's boxes among random others."""
        names = self._present_vocabulary().names
        prompts, boxes, places = [], [], []
        for rows, absent in zip(*self._class_targets(batched_inputs)):
            prompt, kept = self.family.training_prompt(
                rows.gt_classes, names, negatives=absent, **self.negatives
            )
            prompts.append(prompt)
            boxes.append(rows.gt_boxes.tensor[kept])
            places.append(prompt.places(rows.gt_classes[kept]))
        pixels = [self._rgb(sample["image"]) for sample in batched_inputs]
        return self.family.losses(pixels, prompts, boxes, places)

    def _has_caption(self, sample: dict[str, Any]) -> bool:
        return bool(self.reads_captions) and isinstance(sample.get("caption"), TokenSpans)

    def _caption_of(self, sample: dict[str, Any]) -> TokenSpans | None:
        """Captions whose phrases are not marked are nobody's question."""
        return sample["caption"] if self._has_caption(sample) else None

    def _get_name(self) -> str:
        """In messages and in ``repr``: which of the families it is."""
        return f"{type(self).__name__} ({self.family.model.config.model_type})"

    @property
    def embed_examples(self) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
        """See :class:`~ovd_d2.modeling.open_vocabulary.SeesExamples`; None of families that give no
        embeddings of boxes."""
        of_family = self.family.embed_examples
        return of_family and (lambda image, boxes: of_family(self._rgb(image), boxes))

    def _rgb(self, image: Tensor) -> Tensor:
        return image if self.input_format == "RGB" else image.flip(0)

    def _detect(self, pixels: list[Tensor], caption: TokenSpans | None) -> list[Instances]:
        """See the base class."""
        images = self.family.encode_images([self._rgb(image) for image in pixels])
        if caption is not None:
            groups = [self.family.encode_texts([self.family.caption_prompt(caption)])]
        else:
            groups = self._vocabulary_in_groups(max(self.pairs_at_once // len(pixels), 1))
        found = [self._candidates(images, group) for group in groups]
        joined = [Candidates(*map(torch.cat, zip(*of_image))) for of_image in zip(*found)]
        size = tuple(pixels[0].shape[-2:])
        return [self._select(candidates, size) for candidates in joined]

    def _vocabulary_in_groups(self, size: int) -> list[TextGroup]:
        """The prompts of the vocabulary, ``size`` at a time, encoded once."""
        if size not in self._encoded:
            starts = range(0, len(self._prompts), size)
            groups = [self._prompts[i : i + size] for i in starts]
            self._encoded[size] = [self.family.encode_texts(group) for group in groups]
        return self._encoded[size]

    def _candidates(self, images: ImageBatch, texts: TextGroup) -> list[Candidates]:
        """The best pairs of box and class of each of N images and P prompts, in pixels."""
        boxes, scores = self.family.read(images, texts)
        n, _, _, names = scores.shape
        scores = scores.masked_fill(texts.numbers[None, :, None] < 0, -1.0).flatten(2)
        scores, pairs = scores.topk(min(self.candidates_per_prompt, scores.shape[2]), sorted=False)
        classes = texts.numbers.expand(n, -1, -1).gather(2, pairs % names)  # (N, P, k)
        places = pairs.div(names, rounding_mode="floor")[..., None].expand(-1, -1, -1, 4)
        boxes = box_convert(boxes.gather(2, places), "cxcywh", "xyxy")
        boxes = boxes * boxes.new_tensor(images.frame * 2)
        good = scores > self.score_threshold
        return [
            Candidates(*(values[i][good[i]] for values in (boxes, scores, classes)))
            for i in range(n)
        ]

    def _select(self, candidates: Candidates, size: tuple[int, int]) -> Instances:
        """The best of one image, best first. What lies beyond its border, in OWLv2's padding, takes
        no other's place."""
        if self.nms_threshold < 1:
            (found,) = without_duplicates([candidates], [size], self.nms_threshold, -1)
        else:
            order = candidates.scores.argsort(descending=True, stable=True)
            boxes, scores, classes = (values[order] for values in candidates)
            found = Instances(size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)
        found.pred_boxes.clip(size)
        found = found[found.pred_boxes.nonempty()]
        return found if self.max_detections < 0 else found[: self.max_detections]
