"""What a family of zero-shot detectors of transformers has to say.

Letters: N images, P prompts of a group, Q boxes of an image and a prompt, Kp classes of the longest
of these prompts, K classes of the vocabulary, L tokens.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ovd_d2.errors import OVDError
from ovd_d2.language import ClassEmbedder
from ovd_d2.structures.grounding import TokenSpans


class ImageBatch(NamedTuple):
    """N images of one size, encoded once for all prompts: what ``read`` of the same family takes.

    Attributes:
        features: whatever the family makes of images.
        frame: (width, height) in pixels of what boxes are relative to.
    """

    features: Any
    frame: tuple[float, float]


class TextGroup(NamedTuple):
    """P prompts that go through the model together, encoded once for all images.

    Attributes:
        features: whatever the family makes of texts.
        numbers: (P, Kp) int64, the class in [0, K) of each name; -1: the prompt has fewer.
    """

    features: Any
    numbers: Tensor


class Scored(NamedTuple):
    """Boxes and their scores for N images and P prompts.

    Attributes:
        boxes: (N, P, Q, 4) cx, cy, w, h, relative to the frame of the images.
        scores: (N, P, Q, Kp) in [0, 1], float; of names a prompt does not have: anything.
    """

    boxes: Tensor
    scores: Tensor


class ZeroShotFamily(nn.Module):
    """A model with its processor.

    Args:
        model: of transformers.
        processor: its processor.
        prompt: sentence with {} for the name; families that read lists of names take them bare.
        class_score: "max" or "mean" of the tokens of a name, where a family scores tokens.
    """

    learns = False  # whether transformers has a loss for it
    reads_prompt = True  # whether ``prompt`` may be more than the name
    reads_captions = False  # whether phrases of a sentence can be looked for
    # See SeesExamples, of RGB images; None: the family gives no embeddings of classes and boxes.
    embed_examples: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None

    def __init__(
        self, model: nn.Module, processor: Any, *, prompt: str = "{}", class_score: str = "max"
    ) -> None:
        super().__init__()
        self.model = model
        self.processor = processor
        self.prompt = prompt
        self.class_score = class_score
        if prompt != "{}" and not self.reads_prompt:
            raise OVDError(
                f"MODEL.HUGGINGFACE.PROMPT is {prompt!r}, but a {model.config.model_type} reads "
                "names as they are: leave it empty."
            )

    @property
    def device(self) -> torch.device:
        return self.model.device

    def prompts_of(self, names: Sequence[str], most: int) -> list[Any]:
        """The names as the prompts that the model reads, each class in exactly one of them.

        Args:
            names: K class names; equal ones are classes of their own.
            most: most names of a prompt; 0: as many as fit.

        Raises:
            OVDError: a name that is empty once cleaned, or too long for the model.
        """
        raise NotImplementedError

    def caption_prompt(self, caption: TokenSpans) -> Any:
        """A caption as a prompt, whose classes are the places of its phrases.

        Raises:
            OVDError: the family reads names alone.
        """
        raise OVDError(
            f"{self.model.config.model_type} models read names and no captions; take a Grounding "
            "DINO, or name what to look for by set_vocabulary."
        )

    def encode_texts(self, prompts: Sequence[Any]) -> TextGroup:
        """P prompts of :meth:`prompts_of`, on the model's device."""
        raise NotImplementedError

    def encode_images(self, pixels: Sequence[Tensor]) -> ImageBatch:
        """N images (3, H, W) uint8 RGB of one size, through the family's own processor."""
        raise NotImplementedError

    def read(self, images: ImageBatch, texts: TextGroup) -> Scored:
        """What the model says about each name in each image."""
        raise NotImplementedError

    def class_embedder(self, folder: Path) -> ClassEmbedder | None:
        """What embeds names, of families that have :attr:`embed_examples`, else None.

        Args:
            folder: of the model.
        """
        return None

    def prompts_of_rows(self, rows: Tensor, most: int) -> list[Any]:
        """Ready class embeddings (K, D) as prompts, of families that have :attr:`embed_examples`;
        ``most`` as in :meth:`prompts_of`."""
        raise NotImplementedError

    def losses(
        self, pixels: Sequence[Tensor], prompts: Sequence[Any], boxes: Sequence[Tensor],
        places: Sequence[Tensor],
    ) -> dict[str, Tensor]:  # fmt: skip
        """Losses of N images, each with one prompt.

        Args:
            pixels: N of (3, H, W) uint8 RGB, of any size.
            prompts: N, one per image.
            boxes: N of (Gi, 4) xyxy in pixels of the image.
            places: N of (Gi,) int64, the place of each box's name in its prompt.

        Raises:
            OVDError: the family has no loss in transformers.
        """
        raise self._no_loss()

    def training_prompt(
        self, classes: Tensor, names: Sequence[str], **options: Any
    ) -> tuple[Any, Tensor]:
        """The prompt of a training image, and which of its boxes are named in it; see
        :meth:`~ovd_d2.language.caption_prompts.CaptionPrompts.for_training`.

        Raises:
            OVDError: the family has no loss in transformers.
        """
        raise self._no_loss()

    def _no_loss(self) -> OVDError:
        return OVDError(
            f"{self.model.config.model_type} models cannot be trained: transformers has no loss "
            "for them; take a Grounding DINO, or evaluate it as it is (--eval-only)."
        )

    def _process(self, pixels: Sequence[Tensor], **options: Any) -> dict[str, Tensor]:
        """``pixel_values`` and what else the image processor makes, on the model's device."""
        inputs = self.processor.image_processor(
            images=[image.to(self.device) for image in pixels],
            input_data_format="channels_first",
            return_tensors="pt",
            **options,
        )
        return {name: value.to(self.device) for name, value in inputs.items()}


def padded_numbers(numbers: Sequence[Tensor], device: torch.device) -> Tensor:
    """(P, Kp) int64 of P lists of class numbers, -1 behind the end of each."""
    padded = nn.utils.rnn.pad_sequence(list(numbers), batch_first=True, padding_value=-1)
    return padded.to(device)


def size_of(pixels: Sequence[Tensor]) -> tuple[float, float]:
    """(width, height) of images of one size."""
    height, width = pixels[0].shape[-2:]
    return float(width), float(height)
