"""OWL-ViT and OWLv2: every patch is a box, scored against text embeddings that see no image.

Letters: N images, Q patches, K classes, D embedding width.

Source: Minderer et al. 2022, "Simple Open-Vocabulary Object Detection with Vision Transformers";
Minderer et al. 2023, "Scaling Open-Vocabulary Object Detection".
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert

from ovd_d2.encoders.huggingface import encoder_id
from ovd_d2.errors import OVDError
from ovd_d2.language import TextEmbeddings, Vocabulary
from ovd_d2.language.prompts import fill
from ovd_d2.modeling.box_vectors import vectors_of_boxes

from .family import ImageBatch, Scored, TextGroup, ZeroShotFamily, padded_numbers, size_of

NAMES_AT_ONCE = 512  # whose scores of all patches are held together
Names = list[tuple[int, str | Tensor]]  # class number, and sentence or ready embedding (D,)


class OwlFamily(ZeroShotFamily):
    """A prompt is a list of sentences, or of ready embeddings, which do not know of each other."""

    def prompts_of(self, names: Sequence[str], most: int) -> list[Names]:
        """See the base class."""
        texts = [fill(self.prompt, name) for name in names]
        ids = self.processor.tokenizer(texts, truncation=False, verbose=False)["input_ids"]
        limit = self.model.config.text_config.max_position_embeddings
        for name, tokens in zip(names, ids):
            if len(tokens) > limit:
                raise OVDError(
                    f"class name {name[:60]!r} has {len(tokens)} tokens in its prompt, but the "
                    f"model reads at most {limit}; give the class a shorter name"
                )
        return _in_steps(list(enumerate(texts)), most)

    def class_embedder(self, folder: Path) -> "OwlNames":
        """See the base class."""
        return OwlNames(self, folder)

    def prompts_of_rows(self, rows: Tensor, most: int) -> list[Names]:
        """See the base class."""
        return _in_steps(list(enumerate(rows)), most)

    def encode_texts(self, prompts: Sequence[Names]) -> TextGroup:
        """See the base class; of P prompts at once the names become those of one."""
        numbers, texts = zip(*(pair for prompt in prompts for pair in prompt))
        numbers = padded_numbers([torch.tensor(numbers)], self.device)
        if isinstance(texts[0], Tensor):
            return TextGroup(torch.stack(texts).to(self.device), numbers)
        limit = self.model.config.text_config.max_position_embeddings
        tokens = self.processor.tokenizer(
            list(texts), padding="max_length", max_length=limit, return_tensors="pt"
        ).to(self.device)
        dual = getattr(self.model, self.model.base_model_prefix)
        embeddings = dual.get_text_features(tokens["input_ids"], tokens["attention_mask"])
        if not isinstance(embeddings, Tensor):  # from transformers 5 on
            embeddings = embeddings.pooler_output
        return TextGroup(F.normalize(embeddings, dim=-1), numbers)

    def encode_images(self, pixels: Sequence[Tensor]) -> ImageBatch:
        """See the base class. OWLv2 pads an image to a square, and so do its boxes."""
        features = self.model.image_embedder(self._process(pixels)["pixel_values"])[0]
        width, height = size_of(pixels)
        if self.model.config.model_type == "owlv2":
            width = height = max(width, height)
        boxes = self.model.box_predictor(features.flatten(1, 2), features)
        return ImageBatch((features.flatten(1, 2), boxes), (width, height))

    def embed_examples(self, image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`~ovd_d2.modeling.open_vocabulary.SeesExamples`: the image queries of the
        patches that predict the boxes best."""
        images = self.encode_images([image])
        features, predicted = images.features
        queries = self.model.class_predictor(features)[1][0]
        predicted = box_convert(predicted[0].float(), "cxcywh", "xyxy")
        predicted = predicted * predicted.new_tensor(images.frame * 2)
        every = predicted.new_ones(len(predicted))
        return vectors_of_boxes(queries, predicted, every, boxes.to(self.device))

    def read(self, images: ImageBatch, texts: TextGroup) -> Scored:
        """See the base class."""
        features, boxes = images.features
        queries = texts.features.expand(len(features), -1, -1)
        logits = self.model.class_predictor(features, queries)[0]
        return Scored(boxes[:, None], logits.float().sigmoid()[:, None])


class OwlNames:
    """The class embedder of an OWL: its own text tower."""

    def __init__(self, family: OwlFamily, folder: Path) -> None:
        """
        Args:
            family: whose tower it is.
            folder: of the model.
        """
        self._family = family
        self._folder = folder

    @property
    def encoder_id(self) -> str:
        """By the files of the model."""
        return encoder_id(self._folder)

    @torch.no_grad()
    def embed(self, vocabulary: Vocabulary) -> TextEmbeddings:
        """See :class:`~ovd_d2.language.ClassEmbedder`."""
        prompts = self._family.prompts_of(vocabulary.names, 0)
        rows = [self._family.encode_texts([prompt]).features for prompt in prompts]
        return TextEmbeddings(torch.cat(rows), vocabulary.names, self.encoder_id)


def _in_steps(numbered: Names, most: int) -> list[Names]:
    step = most or NAMES_AT_ONCE
    return [numbered[k : k + step] for k in range(0, len(numbered), step)]
