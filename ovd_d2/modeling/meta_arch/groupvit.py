"""GroupViT: segmentation that is learned from images and their captions alone.

Letters: N images of this process, K classes, P prompted nouns of a caption, D embedding width, G
segments of an image.

Source: Xu et al. 2022, "GroupViT: Semantic Segmentation Emerges from Text Supervision"; where the
public code differs from the paper, as the public code.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn import functional as F

from ovd_d2.encoders.image_text_model import ImagePreprocessing
from ovd_d2.encoders.text_towers import build_text_tower
from ovd_d2.errors import OVDError
from ovd_d2.language import (
    LATER,
    ClassEmbedder,
    TextEmbeddings,
    Vocabulary,
    VocabularyLike,
    as_vocabulary,
)
from ovd_d2.language.prompts import clean_name
from ovd_d2.layers.gather_rows import gather_rows
from ovd_d2.layers.grouping import Assignment
from ovd_d2.losses import multi_label_contrastive_loss, symmetric_contrastive_loss
from ovd_d2.losses.multi_label_contrastive import FORMS
from ovd_d2.modeling.backbone import GroupViTEncoder
from ovd_d2.modeling.group_segmentation import GroupSegmentation, WindowSegments
from ovd_d2.modeling.projected_text import ProjectedText, PromptEnsemble

BACKGROUND = "background"


@META_ARCH_REGISTRY.register()
class GroupViT(nn.Module):
    """Images whose patches are grouped into segments, and texts, in one space.

    Input: list of dicts with ``image`` (3, H, W) uint8 RGB, 0-255. In training all images have one
    size, and there are ``caption`` (str) and, for the multi-label loss, ``prompted_nouns`` (P
    texts, P the same for all). Training returns ``loss_contrastive`` and ``loss_multi_label``.

    Inference returns one dict per image. After :meth:`set_vocabulary` it is ``{"sem_seg": (K,
    height, width) fp32}``, probabilities averaged over windows, ``height`` and ``width`` being
    those of the sample or of its image; a class called "background" is what no other reaches the
    threshold for. A sample with a ``label`` (an image to be named) gets ``logits`` (K,) = logit
    scale * cosine and ``image_embedding`` (D,) instead; without a vocabulary there are
    ``image_embedding`` and, of a ``caption``, ``text_embedding``. Embeddings have L2 norm 1.

    The parameters ``logit_scale`` and ``multi_label_logit_scale`` are the logarithms of the factors
    on the cosine; where a factor is above its largest value it gets no gradient.
    """

    @configurable
    def __init__(
        self,
        *,
        image_encoder: GroupViTEncoder,
        image_projector: nn.Module,
        text: ProjectedText,
        preprocessing: ImagePreprocessing,
        segmentation: GroupSegmentation,
        multi_label_loss: str = "soft_targets",
        logit_scale_init: float = 1 / 0.07,
        logit_scale_max: float = 100.0,
        prompts: str = "a photo of a {}.",
        use_synonyms: bool = False,
        vocabulary: VocabularyLike | None = None,
    ) -> None:
        """
        Args:
            image_encoder: images -> segments.
            image_projector: (M, width of segments) -> (M, D).
            text: texts -> (M, D).
            preprocessing: of training images and of those to classify.
            segmentation: from segments of windows to a score map.
            multi_label_loss: its form, see ``multi_label_contrastive_loss``; "": there is none.
            logit_scale_init: first value of both factors on the cosine (exp applied).
            logit_scale_max: the largest that counts.
            prompts: what class names are put into, see ``load_prompts``.
            use_synonyms: a class is the mean over its synonyms too.
            vocabulary: the K classes to start with; None: none before :meth:`set_vocabulary`.
        """
        super().__init__()
        if not 0 < logit_scale_init <= logit_scale_max:
            raise OVDError(
                f"MODEL.GROUPVIT.LOGIT_SCALE_INIT is {logit_scale_init}; it must be above 0 and at "
                f"most LOGIT_SCALE_MAX, {logit_scale_max}."
            )
        if multi_label_loss not in ("", *FORMS):
            raise OVDError(
                f"MODEL.GROUPVIT.MULTI_LABEL_LOSS is {multi_label_loss!r}; it must be "
                f'{", ".join(FORMS)} or "".'
            )
        self.image_encoder = image_encoder
        self.image_projector = image_projector
        self.text = text
        self.preprocessing = preprocessing
        self.segmentation = segmentation
        self.multi_label_loss = multi_label_loss
        self.logit_scale_max = logit_scale_max
        self.logit_scale = nn.Parameter(torch.tensor(math.log(logit_scale_init)))
        if multi_label_loss:
            self.multi_label_logit_scale = nn.Parameter(self.logit_scale.detach().clone())
        self.class_embedder: ClassEmbedder = PromptEnsemble(text, prompts, use_synonyms)
        self._classes: tuple[Tensor, int | None] | None = None
        self.register_load_state_dict_post_hook(_forget_classes)
        self.set_vocabulary(vocabulary)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The parts that ``MODEL.GROUPVIT`` names.

        Raises:
            OVDError: unknown parts, sizes that do not fit, or another colour order than RGB.
        """
        keys = cfg.MODEL.GROUPVIT
        if cfg.INPUT.FORMAT != "RGB":
            raise OVDError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT}; GroupViT needs RGB.")
        tower = build_text_tower(
            keys.TEXT_TOWER, None, width=keys.TEXT.WIDTH, heads=keys.TEXT.HEADS,
            layers=keys.TEXT.LAYERS, context=keys.TEXT.CONTEXT, key="MODEL.GROUPVIT",
        )  # fmt: skip
        make_projector = partial(
            projector, hidden=keys.PROJECTOR_HIDDEN, dim=keys.EMBED_DIM,
            norm=_projector_norm(keys.PROJECTOR_NORM, cfg.MODEL.DEVICE),
        )  # fmt: skip
        spec = cfg.MODEL.OPEN_VOCAB.VOCABULARY
        return {
            "image_encoder": _image_encoder(keys),
            "image_projector": make_projector(keys.WIDTH),
            "text": ProjectedText(tower, make_projector(tower.dim)),
            "preprocessing": ImagePreprocessing(
                image_size=keys.IMAGE_SIZE,
                mean=tuple(value / 255 for value in cfg.MODEL.PIXEL_MEAN),
                std=tuple(value / 255 for value in cfg.MODEL.PIXEL_STD),
                interpolation="bilinear",
                crop_share=keys.CROP_SHARE_TEST,
            ),
            "segmentation": GroupSegmentation(
                window=keys.WINDOW_TEST,
                stride=keys.STRIDE_TEST,
                top_classes=keys.TOP_CLASSES_TEST,
                background_threshold=keys.BACKGROUND_THRESH_TEST,
            ),
            "multi_label_loss": keys.MULTI_LABEL_LOSS,
            "logit_scale_init": keys.LOGIT_SCALE_INIT,
            "logit_scale_max": keys.LOGIT_SCALE_MAX,
            "prompts": cfg.MODEL.OPEN_VOCAB.PROMPTS,
            "use_synonyms": cfg.MODEL.OPEN_VOCAB.USE_SYNONYMS,
            "vocabulary": None if spec in ("", LATER) else spec,
        }

    @property
    def device(self) -> torch.device:
        return self.logit_scale.device

    def train(self, mode: bool = True) -> "GroupViT":
        self._classes = None  # encoded by weights that may change now
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> "GroupViT":
        self._classes = None  # they stay where the model was
        return super()._apply(*args, **kwargs)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        return self.losses(batched_inputs) if self.training else self.inference(batched_inputs)

    def losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """See the class; over the batch of all processes, each having as many images."""
        images = torch.stack([sample["image"] for sample in batched_inputs])
        self._check_batch(len(images))
        pixels = self.preprocessing(images.to(self.device))
        image_rows = self.image_projector(self.image_encoder(pixels).pooled)
        texts = self._texts_of(batched_inputs)
        text_rows = self.text([text for of_image in texts for text in of_image])
        image_rows = F.normalize(image_rows.float(), dim=1)
        text_rows = F.normalize(text_rows, dim=1).unflatten(0, (len(texts), -1))
        captions, nouns = text_rows[:, 0], text_rows[:, 1:]
        of_all = {"all_image_embeddings": gather_rows(image_rows)}
        of_all["offset"] = comm.get_rank() * len(images)
        scale = self._factor(self.logit_scale)
        get_event_storage().put_scalar("groupvit/logit_scale", scale.item())
        with torch.autocast(self.device.type, enabled=False):
            loss = symmetric_contrastive_loss(
                image_rows, captions, scale, all_text_embeddings=gather_rows(captions), **of_all
            )
            if not self.multi_label_loss:
                return {"loss_contrastive": loss}
            of_nouns = multi_label_contrastive_loss(
                image_rows, nouns, self._factor(self.multi_label_logit_scale),
                form=self.multi_label_loss, all_text_embeddings=gather_rows(nouns), **of_all,
            )  # fmt: skip
        return {"loss_contrastive": loss, "loss_multi_label": of_nouns}

    def _check_batch(self, count: int) -> None:
        """Raises OVDError for a batch that batch norm can make nothing of."""
        synchronised = isinstance(self.image_projector[1], nn.SyncBatchNorm)
        if count * (comm.get_world_size() if synchronised else 1) < 2:
            raise OVDError(
                "GroupViT's projectors norm over the images of a batch, but SOLVER.IMS_PER_BATCH "
                "gives a single one: give at least 2 for each process."
            )

    def _texts_of(self, samples: Sequence[dict[str, Any]]) -> list[list[str]]:
        """Per image its caption and, for the multi-label loss, its prompted nouns."""
        if not self.multi_label_loss:
            return [[sample["caption"]] for sample in samples]
        counts = {len(sample.get("prompted_nouns", ())) for sample in samples}
        if len(counts) > 1 or 0 in counts:
            raise OVDError(
                "MODEL.GROUPVIT.MULTI_LABEL_LOSS needs as many prompted nouns of every image, but "
                f"there are {', '.join(map(str, sorted(counts)))}: set INPUT.PAIRS.PROMPTED_NOUNS "
                '3 (the same in all sources), or MULTI_LABEL_LOSS "".'
            )
        return [[sample["caption"], *sample["prompted_nouns"]] for sample in samples]

    def _factor(self, log_scale: Tensor) -> Tensor:
        return log_scale.exp().clamp(max=self.logit_scale_max)

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """See the class."""
        segments = self.vocabulary is not None
        return [
            self._segmented(sample) if segments and "label" not in sample else self._named(sample)
            for sample in batched_inputs
        ]

    def _segmented(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        image = sample["image"].to(self.device)
        size = (sample.get("height", image.shape[1]), sample.get("width", image.shape[2]))
        classes, background = self._present_classes()
        pixels = self.preprocessing.normalise(image[None])[0]
        return {
            "sem_seg": self.segmentation(
                self.encode_windows, pixels, classes, self._factor(self.logit_scale), size,
                background,
            )
        }  # fmt: skip

    def _named(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        pixels = self.preprocessing(sample["image"].to(self.device)[None])
        output = {"image_embedding": self.encode_windows(pixels).images[0]}
        if "caption" in sample:
            output["text_embedding"] = F.normalize(self.text.encode([sample["caption"]]), dim=1)[0]
        if self.vocabulary is not None:
            cosines = self._present_classes()[0] @ output["image_embedding"]
            output["logits"] = self._factor(self.logit_scale) * cosines
        return output

    def encode_windows(self, pixels: Tensor) -> WindowSegments:
        """(N, 3, H, W) fp32, normalised by mean and deviation, of any size -> their segments.

        Sides that are no multiples of the patch are resized to the next ones, bilinearly.
        """
        patch = self.image_encoder.patch
        sides = [-(-side // patch) * patch for side in pixels.shape[2:]]
        if sides != list(pixels.shape[2:]):
            pixels = F.interpolate(pixels, sides, mode="bilinear", align_corners=False)
        found = self.image_encoder(pixels)
        rows = torch.cat([found.pooled[:, None], found.tokens], dim=1)
        rows = self.image_projector(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])
        rows = F.normalize(rows.float(), dim=2)
        return WindowSegments(rows[:, 0], rows[:, 1:], found.segment_maps())

    def set_vocabulary(self, vocabulary: VocabularyLike | None) -> None:
        """Swaps the classes.

        Args:
            vocabulary: K classes, "background" being one with a rule of its own; None: inference
                gives embeddings alone.

        Raises:
            OVDError: names that cannot be had, or that the class embedder does not know; nothing
                changes then.
        """
        classes = None if vocabulary is None else as_vocabulary(vocabulary)
        given = None
        if classes is not None:
            _check_classes(classes)
            if isinstance(self.class_embedder, PromptEnsemble):  # our own wait for the weights
                self.class_embedder.texts(classes)  # raises for a name that is none
            else:
                given = self.class_embedder.embed(classes)
                self._check_width(given)
        self.vocabulary: Vocabulary | None = classes
        self._given = given
        self._classes = None

    def _check_width(self, embeddings: TextEmbeddings) -> None:
        width = self.image_projector[-1].out_features
        if embeddings.dim != width:
            raise OVDError(
                f"class embeddings of {embeddings.encoder_id} have {embeddings.dim} values, "
                f"segments of this model have {width}: give embeddings of its own text side."
            )

    def _present_classes(self) -> tuple[Tensor, int | None]:
        """Embeddings of the classes but "background", encoded once, and its place."""
        if self._classes is None:
            embeddings = self._given or self.class_embedder.embed(self.vocabulary)
            rows = embeddings.embeddings.to(self.device)
            place = _background_place(self.vocabulary)
            if place is not None:
                rows = torch.cat([rows[:place], rows[place + 1 :]])
            self._classes = rows, place
        return self._classes


def projector(width: int, *, hidden: int, dim: int, norm: type[nn.Module]) -> nn.Sequential:
    """(M, width) -> (M, D): Linear, batch norm, ReLU, Linear."""
    layers = nn.Linear(width, hidden), norm(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim)
    return nn.Sequential(*layers)


def _projector_norm(name: str, device: str) -> type[nn.Module]:
    if name == "SyncBN" and device == "cpu" and comm.get_world_size() > 1:
        raise OVDError(
            "MODEL.GROUPVIT.PROJECTOR_NORM is SyncBN, which several processes on CPUs cannot have: "
            "set it to BN."
        )
    return {"SyncBN": nn.SyncBatchNorm, "BN": nn.BatchNorm1d}[name]


def _image_encoder(keys: CfgNode) -> GroupViTEncoder:
    assignment = partial(
        Assignment, hard=keys.HARD_ASSIGNMENT, gumbel=keys.GUMBEL_NOISE, average=keys.AVERAGE,
        temperature=keys.ASSIGNMENT_TEMPERATURE, count_offset=keys.COUNT_OFFSET,
    )  # fmt: skip
    return GroupViTEncoder(
        image_size=keys.IMAGE_SIZE, patch=keys.PATCH, width=keys.WIDTH, heads=keys.HEADS,
        depths=keys.DEPTHS, group_tokens=keys.GROUP_TOKENS, output_groups=keys.OUTPUT_GROUPS,
        drop_path=keys.DROP_PATH_RATE, assignment=assignment,
    )  # fmt: skip


def _background_place(vocabulary: Vocabulary) -> int | None:
    places = [k for k, name in enumerate(vocabulary.names) if clean_name(name) == BACKGROUND]
    return places[0] if places else None


def _check_classes(vocabulary: Vocabulary) -> None:
    if len(vocabulary) == 1 and _background_place(vocabulary) is not None:
        raise OVDError("The vocabulary has background alone: give at least one other class.")


def _forget_classes(model: GroupViT, _: Any) -> None:
    """A hook: the classes were encoded with other weights."""
    model._classes = None
