"""CLIP: contrastive image-text pre-training as a Detectron2 meta-architecture.

Letters: N images of this process, K classes, D embedding width, S side of the input.

Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language
Supervision"; the locked text tower is Zhai et al. 2022, "LiT".
"""

import fnmatch
import hashlib
import logging
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn import functional as F

from ovd_d2.checkpoint import from_openai_clip, is_openai_clip
from ovd_d2.encoders import TextEncoder
from ovd_d2.encoders.image_text_model import ImagePreprocessing
from ovd_d2.encoders.image_towers import build_image_tower
from ovd_d2.encoders.text_towers import LockedTextTower, build_text_tower
from ovd_d2.errors import OVDError
from ovd_d2.language import TextEmbeddingBank, Vocabulary, VocabularyLike, as_vocabulary
from ovd_d2.layers.gather_rows import gather_rows
from ovd_d2.losses import symmetric_contrastive_loss
from ovd_d2.modeling.word_region_learning import caption_digests

logger = logging.getLogger(__name__)

_POSITIONS = "image_tower.visual.positional_embedding"


@META_ARCH_REGISTRY.register()
class CLIP(nn.Module):
    """Two towers, one space.

    Input: list of dicts with ``image`` (3, H, W) uint8 RGB, 0-255, and ``caption`` (str).
    Training returns ``{"loss_contrastive": scalar}``; all images must have one size. Inference
    returns one dict per image: ``image_embedding`` (D,), ``text_embedding`` (D,) if it has a
    caption, and after :meth:`set_vocabulary` ``logits`` (K,) = logit scale * cosine; embeddings
    fp32 of L2 norm 1; images may differ in size. With ``probe`` it is ``image_features`` (F,)
    alone, fp32: what a linear probe sees.

    The parameter ``logit_scale`` is the logarithm of the factor on the cosine, as in CLIP.
    """

    gives_image_features = True

    @configurable
    def __init__(
        self,
        *,
        image_tower: nn.Module,
        text_tower: nn.Module,
        preprocessing: ImagePreprocessing,
        settings: dict[str, Any] | None = None,
        logit_scale_init: float = 1 / 0.07,
        logit_scale_max: float = 100.0,
        ignore_equal_captions: bool = False,
        freeze: Sequence[str] = (),
        prompts: str = "photo",
        use_synonyms: bool = False,
        probe: bool = False,
    ) -> None:
        """
        Args:
            image_tower: (N, 3, S, S) float, preprocessed -> (N, D), not normalised.
            text_tower: list of N captions -> (N, D), not normalised.
            preprocessing: size, mean and std of the image tower's input.
            settings: of the image tower, for an exported file; see ``clip.image_towers``.
            logit_scale_init: first value of the factor on the cosine (exp applied).
            logit_scale_max: it never becomes larger.
            ignore_equal_captions: pairs with the same caption are no negatives of each other.
            freeze: patterns of the names of parameters that get no gradient.
            prompts: what class names are put into, see ``load_prompts``.
            use_synonyms: a class is the average over its synonyms too.
            probe: inference gives the image tower's features before the projection.
        """
        super().__init__()
        if not 0 < logit_scale_init <= logit_scale_max:
            raise OVDError(
                f"MODEL.CLIP.LOGIT_SCALE_INIT is {logit_scale_init}; it must be above 0 and at "
                f"most MODEL.CLIP.LOGIT_SCALE_MAX, {logit_scale_max}."
            )
        self.image_tower = image_tower
        self.text_tower = text_tower
        self.preprocessing = preprocessing
        self.settings = settings or {}
        self.logit_scale = nn.Parameter(torch.tensor(math.log(logit_scale_init)))
        self.logit_scale_max = logit_scale_max
        self.ignore_equal_captions = ignore_equal_captions
        self.prompts = prompts
        self.use_synonyms = use_synonyms
        self.probe = probe
        self.vocabulary: Vocabulary | None = None
        self.register_buffer("class_embeddings", torch.zeros(0, 0), persistent=False)
        for pattern in freeze:
            names = fnmatch.filter([name for name, _ in self.named_parameters()], pattern)
            if not names:
                raise OVDError(f"MODEL.CLIP.FREEZE {pattern!r} fits no parameter of the model.")
            for name in names:
                self.get_parameter(name).requires_grad_(False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The parts that ``MODEL.CLIP`` names.

        Raises:
            OVDError: unknown parts, sizes that do not fit, or another colour order than RGB.
        """
        keys = cfg.MODEL.CLIP
        if cfg.INPUT.FORMAT != "RGB":
            raise OVDError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT}; CLIP needs RGB.")
        settings: dict[str, Any] = {
            "kind": keys.IMAGE_TOWER,
            "dim": keys.EMBED_DIM,
            "image_size": keys.IMAGE_SIZE,
        }
        if keys.IMAGE_TOWER == "timm":
            settings |= {"name": keys.TIMM.NAME}
        elif keys.IMAGE_TOWER == "clip_vit":
            vit = keys.VIT
            settings |= {"patch": vit.PATCH, "width": vit.WIDTH, "layers": vit.LAYERS}
        elif keys.IMAGE_TOWER == "clip_resnet":
            settings |= {"layers": list(keys.RESNET.LAYERS), "width": keys.RESNET.WIDTH}
        text = keys.TEXT
        return {
            "image_tower": build_image_tower(settings, keys.TIMM.WEIGHTS, keys.CHECKPOINT),
            "text_tower": build_text_tower(
                keys.TEXT_TOWER, keys.EMBED_DIM, width=text.WIDTH, heads=text.HEADS,
                layers=text.LAYERS, context=text.CONTEXT, checkpoint=keys.CHECKPOINT,
            ),
            "preprocessing": ImagePreprocessing(
                image_size=keys.IMAGE_SIZE,
                mean=tuple(value / 255 for value in cfg.MODEL.PIXEL_MEAN),
                std=tuple(value / 255 for value in cfg.MODEL.PIXEL_STD),
                resize=keys.RESIZE,
            ),
            "settings": settings,
            "logit_scale_init": keys.LOGIT_SCALE_INIT,
            "logit_scale_max": keys.LOGIT_SCALE_MAX,
            "ignore_equal_captions": keys.IGNORE_EQUAL_CAPTIONS,
            "freeze": tuple(keys.FREEZE),
            "prompts": cfg.MODEL.OPEN_VOCAB.PROMPTS,
            "use_synonyms": cfg.MODEL.OPEN_VOCAB.USE_SYNONYMS,
            "probe": cfg.TEST.LINEAR_PROBE.ENABLED,
        }  # fmt: skip

    def adapt_state_dict(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A state dict of OpenAI's CLIP by our names; positions of a ViT that was trained on images
        of another size are resampled, which is logged (bicubic: FixRes of ViT-L/14@336px)."""
        if is_openai_clip(state):
            state = from_openai_clip(state)
        theirs = state.get(_POSITIONS)
        mine = self.state_dict().get(_POSITIONS)
        if theirs is None or mine is None or theirs.shape == mine.shape:
            return state
        resampled = _resampled_positions(theirs, len(mine))
        if resampled is None:
            return state  # of another network, which the comparison of shapes will say
        logger.warning(
            "The weights are of images of %d patches a side, MODEL.CLIP.IMAGE_SIZE asks for %d: "
            "the position embeddings are resampled.",
            math.isqrt(len(theirs) - 1), math.isqrt(len(mine) - 1),
        )  # fmt: skip
        adapted = OrderedDict(state)
        if hasattr(state, "_metadata"):
            adapted._metadata = state._metadata
        adapted[_POSITIONS] = resampled
        return adapted

    @property
    def device(self) -> torch.device:
        return self.logit_scale.device

    def encode_image(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 RGB -> (N, D) of L2 norm 1, fp32, with gradient."""
        pixels = self.preprocessing(images.to(self.device))
        return F.normalize(self.image_tower(pixels).float(), dim=1)

    def _probed_features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 RGB -> (N, F) fp32, before the projection."""
        return self.image_tower.features(self.preprocessing(images.to(self.device))).float()

    def encode_text(self, captions: list[str]) -> Tensor:
        """N captions -> (N, D) of L2 norm 1, fp32, with gradient where the tower trains."""
        return F.normalize(self.text_tower(captions).float(), dim=1)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        return self.losses(batched_inputs) if self.training else self.inference(batched_inputs)

    def losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The contrastive loss over the batch of all processes."""
        captions = [sample["caption"] for sample in batched_inputs]
        images = self.encode_image(torch.stack([sample["image"] for sample in batched_inputs]))
        texts = self.encode_text(captions)
        with torch.no_grad():  # clipped, not clamped in the graph: it can come down again
            self.logit_scale.clamp_(max=math.log(self.logit_scale_max))
        same_text = None
        if self.ignore_equal_captions:
            digests = caption_digests(captions, self.device)
            same_text = digests[:, None] == gather_rows(digests)[None]
        scale = self.logit_scale.exp()
        get_event_storage().put_scalar("clip/logit_scale", scale.item())
        with torch.autocast(self.device.type, enabled=False):
            loss = symmetric_contrastive_loss(
                images,
                texts,
                scale,
                all_image_embeddings=gather_rows(images),
                all_text_embeddings=gather_rows(texts),
                offset=comm.get_rank() * len(images),
                same_text=same_text,
            )
        return {"loss_contrastive": loss}

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """See the class."""
        encode = self._probed_features if self.probe else self.encode_image
        sizes = [tuple(sample["image"].shape) for sample in batched_inputs]
        rows: list[Tensor] = [torch.empty(0)] * len(sizes)
        for size in dict.fromkeys(sizes):
            places = [place for place, other in enumerate(sizes) if other == size]
            batch = encode(torch.stack([batched_inputs[i]["image"] for i in places]))
            for place, row in zip(places, batch):
                rows[place] = row
        if self.probe:
            return [{"image_features": row} for row in rows]
        outputs = [{"image_embedding": row} for row in rows]
        for output, sample in zip(outputs, batched_inputs):
            if "caption" in sample:
                output["text_embedding"] = self.encode_text([sample["caption"]])[0]
            if self.vocabulary is not None:
                cosines = self.class_embeddings @ output["image_embedding"]
                output["logits"] = self.logit_scale.exp() * cosines
        return outputs

    def text_encoder(self) -> TextEncoder:
        """The text side with its present weights, for class embeddings.

        That of a locked tower without projection is the locked encoder itself.
        """
        tower = self.text_tower
        if isinstance(tower, LockedTextTower) and tower.projection is None:
            return tower.encoder
        return _PresentTextEncoder(self)

    def set_vocabulary(self, vocabulary: VocabularyLike | None) -> None:
        """Makes inference classify, by class embeddings of the text side as it is now.

        Args:
            vocabulary: K classes; None: inference gives embeddings alone.

        Raises:
            OVDError: names that cannot be had; nothing changes then.
        """
        if vocabulary is None:
            self.vocabulary = None
            self.class_embeddings = self.class_embeddings.new_zeros(0, 0)
            return
        vocabulary = as_vocabulary(vocabulary)
        bank = TextEmbeddingBank(self.text_encoder(), self.prompts, self.use_synonyms, cache=False)
        self.class_embeddings = bank.embed(vocabulary).embeddings.to(self.device)
        self.vocabulary = vocabulary


def _resampled_positions(positions: Tensor, count: int) -> Tensor | None:
    """(1 + S * S, D), class token first -> (``count``, D) of another square grid, or None if there
    is no grid."""
    old, new = math.isqrt(max(len(positions) - 1, 0)), math.isqrt(count - 1)
    if positions.ndim != 2 or old < 1 or old * old + 1 != len(positions) or new * new + 1 != count:
        return None
    grid = positions[1:].float().T.reshape(1, -1, old, old)
    grid = F.interpolate(grid, (new, new), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([positions[:1].float(), grid[0].flatten(1).T])


class _PresentTextEncoder:
    """The text side of a model being trained, as a ``TextEncoder``; its id names the weights."""

    def __init__(self, model: CLIP) -> None:
        self._model = model
        self.dim = self.encode(["a"]).shape[1]
        digest = hashlib.sha256()
        for key, value in model.text_tower.state_dict().items():
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        self.encoder_id = f"clip-in-training@{digest.hexdigest()[:12]}"

    @torch.no_grad()
    def encode(self, texts: list[str]) -> Tensor:
        if not texts:
            return torch.zeros(0, self.dim)
        was_training = self._model.training
        self._model.eval()
        try:
            return self._model.encode_text(texts).cpu()
        finally:
            self._model.train(was_training)
