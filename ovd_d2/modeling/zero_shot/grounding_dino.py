"""Grounding DINO and MM-Grounding-DINO (LLMDet): captions of class names, fused with the image.

Letters: N images, P captions, Q boxes, Kp names (or phrases) of a caption, L tokens, T tokens of
names, one that is in two of them counted twice.

Source: Liu et al. 2023, "Grounding DINO"; Zhao et al. 2024, "An Open and Comprehensive Pipeline for
Unified Object Grounding and Detection"; Fu et al. 2025, "LLMDet".
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_convert

from ovd_d2.encoders.caption_tokenizer import CaptionTokenizer
from ovd_d2.encoders.huggingface_detectors import dino_phrase
from ovd_d2.errors import OVDError
from ovd_d2.language.caption_prompts import CaptionPrompts, Prompt, clean_name
from ovd_d2.structures.grounding import CaptionTokens, TokenSpans

from .family import ImageBatch, Scored, TextGroup, ZeroShotFamily, padded_numbers, size_of
from .stand_in import StandIn, standing_in

_CLASS_COST = 2.0  # weight of the loss on tokens, fixed in transformers


@dataclass
class _Captions:
    """P captions: ``tokens``; ``places`` (P, T) int64, tokens of names; ``owners`` (P, T) int64 in
    [0, Kp], the names they belong to, Kp for padding; ``names`` Kp; ``hidden``: what the text
    backbone has made of them, once it has."""

    tokens: CaptionTokens
    places: Tensor
    owners: Tensor
    names: int
    hidden: list[Any] = field(default_factory=list)


class GroundingDinoFamily(ZeroShotFamily):
    """A prompt is a caption "cat. red mug.", or "a cat on a red chair."; a name or phrase scores
    what its own tokens score: the best of them (``class_score`` "max"), or their mean.

    The image backbone runs once per image and BERT once per caption; encoder and decoder, where
    both are fused, run for each pair of them.
    """

    learns = True
    reads_prompt = False
    reads_captions = True

    def __init__(self, model: nn.Module, processor: Any, **options: Any) -> None:
        super().__init__(model, processor, **options)
        most = model.config.max_text_len
        self.tokenizer = CaptionTokenizer(processor.tokenizer, most)
        inner = model.model  # transformers' losses do not reach what proposes the queries
        for part in (inner.enc_output, inner.enc_output_norm, inner.encoder_output_bbox_embed):
            part.requires_grad_(False)
        # A full stop follows the last name too: phrases that none ends are read differently.
        self.captions = CaptionPrompts(CaptionTokenizer(processor.tokenizer, most - 1))

    def phrases(self, names: Sequence[str]) -> list[str]:
        """The names as captions show them.

        Raises:
            OVDError: nothing of a name is left, or the model has no token for it.
        """
        phrases = [dino_phrase(clean_name(name)) for name in names]
        counts = self.tokenizer.count(phrases).tolist()
        for name, count in zip(names, counts):
            if not count:
                raise OVDError(
                    f"class name {name!r} has no word that the model could read; rename the class"
                )
        return phrases

    def prompts_of(self, names: Sequence[str], most: int) -> list[Prompt]:
        """See the base class."""
        return [_closed(p) for p in self.captions.for_vocabulary(self.phrases(names), most or None)]

    def training_prompt(
        self, classes: Tensor, names: Sequence[str], **options: Any
    ) -> tuple[Prompt, Tensor]:
        """As :meth:`CaptionPrompts.for_training`."""
        prompt, kept = self.captions.for_training(classes, self.phrases(names), **options)
        return _closed(prompt), kept

    def caption_prompt(self, caption: TokenSpans) -> Prompt:
        """See the base class. Lower case and a full stop at the end, as the model was trained; the
        other words are read too."""
        text = "".join(c.lower() if len(c.lower()) == 1 else c for c in caption.caption)
        prompt = Prompt(replace(caption, caption=text), torch.arange(len(caption)))
        return prompt if text.rstrip().endswith((".", "?")) else _closed(prompt)

    def encode_texts(self, prompts: Sequence[Prompt]) -> TextGroup:
        """See the base class."""
        tokens = self.tokenizer([prompt.spans.caption for prompt in prompts])
        maps = [p.spans.token_map(offsets) for p, offsets in zip(prompts, tokens.offsets)]
        names = max(len(token_map) for token_map in maps)
        owners, places = zip(*(token_map.nonzero(as_tuple=True) for token_map in maps))
        captions = _Captions(
            tokens.to(self.device),
            pad_sequence(places, batch_first=True).to(self.device),
            pad_sequence(owners, batch_first=True, padding_value=names).to(self.device),
            names,
        )
        return TextGroup(
            captions,
            padded_numbers([prompt.class_numbers for prompt in prompts], self.device),
        )

    def encode_images(self, pixels: Sequence[Tensor]) -> ImageBatch:
        """See the base class."""
        inputs = self._process(pixels)
        mask = inputs["pixel_mask"]
        maps, positions = self.model.model.backbone(inputs["pixel_values"], mask)
        return ImageBatch((maps, positions, mask), size_of(pixels))

    def read(self, images: ImageBatch, texts: TextGroup) -> Scored:
        """See the base class."""
        maps, positions, mask = images.features
        captions, inner = texts.features, self.model.model
        ids, token_mask = captions.tokens.ids, captions.tokens.mask
        n, p = len(mask), len(ids)
        ready = (
            [(m.repeat_interleave(p, 0), valid.repeat_interleave(p, 0)) for m, valid in maps],
            [position.repeat_interleave(p, 0) for position in positions],
        )
        backbone = StandIn(ready, position_embedding=inner.backbone.position_embedding)
        text = _OncePerCaption(inner.text_backbone, captions.hidden, p)
        with standing_in(inner, backbone=backbone, text_backbone=text):
            outputs = self.model(
                # Their features are there already: only the shape is looked at.
                pixel_values=maps[0][0].new_zeros(()).expand(n * p, 3, *mask.shape[1:]),
                pixel_mask=mask.repeat_interleave(p, 0),
                input_ids=ids.repeat(n, 1),
                attention_mask=token_mask.long().repeat(n, 1),
                return_dict=True,
            )
        scores = outputs.logits[..., : ids.shape[1]].float().sigmoid()  # (N * P, Q, L)
        scores = self._of_names(scores.unflatten(0, (n, p)), captions)
        return Scored(outputs.pred_boxes.float().unflatten(0, (n, p)), scores)

    def _of_names(self, scores: Tensor, captions: _Captions) -> Tensor:
        """(N, P, Q, L) scores of tokens -> (N, P, Q, Kp) of names."""
        n, _, q, _ = scores.shape
        scores = scores.gather(-1, captions.places[None, :, None].expand(n, -1, q, -1))
        owners = captions.owners[None, :, None].expand_as(scores)
        reduce = {"max": "amax", "mean": "mean"}[self.class_score]
        empty = scores.new_zeros(*scores.shape[:-1], captions.names + 1)
        found = empty.scatter_reduce(-1, owners, scores, reduce, include_self=False)
        return found[..., : captions.names]

    def losses(
        self, pixels: Sequence[Tensor], prompts: Sequence[Prompt], boxes: Sequence[Tensor],
        places: Sequence[Tensor],
    ) -> dict[str, Tensor]:  # fmt: skip
        """See the base class: transformers' losses with its weights, per box of the batch.

        Images keep the size they come in. They go through the model one by one, for transformers
        takes the labels of the third image of a batch from the caption of another.
        """
        counts = [max(len(rows), 1) for rows in boxes]
        total = max(sum(len(rows) for rows in boxes), 1)
        config = self.model.config
        weights = {
            "loss_ce": _CLASS_COST,
            "loss_bbox": config.bbox_loss_coefficient,
            "loss_giou": config.giou_loss_coefficient,
        }
        losses: dict[str, Tensor] = {}
        for image, prompt, rows, names, count in zip(pixels, prompts, boxes, places, counts):
            tokens = self.tokenizer([prompt.spans.caption]).to(self.device)
            relative = box_convert(rows, "xyxy", "cxcywh") / rows.new_tensor(size_of([image]) * 2)
            outputs = self.model(
                **self._process([image], do_resize=False),
                input_ids=tokens.ids,
                attention_mask=tokens.mask.long(),
                labels=[{"class_labels": names, "boxes": relative}],
                return_dict=True,
            )
            for name, value in outputs.loss_dict.items():
                kind = "_".join(name.split("_")[:2])
                if kind in weights:
                    losses[name] = losses.get(name, 0) + value * weights[kind] * count / total
        return losses


def _closed(prompt: Prompt) -> Prompt:
    """The prompt with a full stop at the end of its caption."""
    return replace(prompt, spans=replace(prompt.spans, caption=f"{prompt.spans.caption}."))


class _OncePerCaption(nn.Module):
    """A text backbone that reads each of P captions once, however many images they go with.

    Args:
        backbone: BERT.
        hidden: its output, once there is one; filled here.
        captions: P; rows of a batch are these for the first image, for the second, and so on.
    """

    def __init__(self, backbone: nn.Module, hidden: list[Any], captions: int) -> None:
        super().__init__()
        self.backbone, self.hidden, self.captions = backbone, hidden, captions

    def forward(self, *inputs: Tensor, **options: Any) -> Any:
        if not self.hidden:
            self.hidden.append(self.backbone(*(x[: self.captions] for x in inputs), **options))
        ready = self.hidden[0].last_hidden_state
        copies = len(inputs[0]) // self.captions
        return type(self.hidden[0])(last_hidden_state=ready.repeat(copies, 1, 1))
