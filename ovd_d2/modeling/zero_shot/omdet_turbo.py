"""OmDet-Turbo: class embeddings, and a task that names the classes, meet the image in the decoder.

Letters: N images, P tasks, Q boxes, Kp classes of the longest of these tasks, D width, L tokens.

Source: Zhao et al. 2024, "Real-time Transformer-based Open-Vocabulary Detection with Efficient
Fusion Head".
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ovd_d2.errors import OVDError
from ovd_d2.language.prompts import clean_name

from .family import ImageBatch, Scored, TextGroup, ZeroShotFamily, padded_numbers, size_of

_OPENING = "Detect"
_SLACK = 2  # tokens: the full stop may be longer than the comma in whose place it is


class _Task(NamedTuple):
    """Names that are looked for together, and their numbers."""

    names: list[str]
    numbers: Tensor

    @property
    def text(self) -> str:
        return f"{_OPENING} {', '.join(self.names)}."


class OmDetTurboFamily(ZeroShotFamily):
    """A prompt is the task "Detect cat, red mug." and these names.

    Image backbone and encoder run once per image, the text backbone once per vocabulary; the
    decoder runs for each pair of image and task.
    """

    reads_prompt = False

    def prompts_of(self, names: Sequence[str], most: int) -> list[_Task]:
        """See the base class."""
        cleaned = [clean_name(name) for name in names]
        counts = self._counts([f"{name}," for name in cleaned])
        opening = self._counts([_OPENING])[0]
        specials = self.processor.tokenizer.num_special_tokens_to_add()
        room = self._limit - specials - opening - _SLACK
        tasks: list[list[int]] = [[]]
        left = room
        for number, count in enumerate(counts):
            if count > room:
                raise OVDError(
                    f"class name {names[number][:60]!r} has {count} tokens, but a task of "
                    f"OmDet-Turbo holds at most {room}; give the class a shorter name"
                )
            if count > left or (most and len(tasks[-1]) >= most):
                tasks.append([])
                left = room
            tasks[-1].append(number)
            left -= count
        return [_Task([cleaned[k] for k in task], torch.tensor(task)) for task in tasks]

    def encode_texts(self, prompts: Sequence[_Task]) -> TextGroup:
        """See the base class. A task of fewer names than another repeats its last one, which
        changes nothing for the others."""
        classes, _ = self._tokens([name for task in prompts for name in task.names])
        language = self.model.language_backbone
        embeddings = language(classes, encode_type="class")  # (sum of names, D)
        parts = embeddings.split([len(task.names) for task in prompts])
        longest = max(map(len, parts))
        padded = [torch.cat([e, e[-1:].expand(longest - len(e), -1)]) for e in parts]
        tasks, mask = self._tokens([task.text for task in prompts])
        task_features, task_mask = language(tasks, mask=mask, encode_type="task")
        features = (torch.stack(padded, dim=1), task_features, task_mask)
        return TextGroup(features, padded_numbers([t.numbers for t in prompts], self.device))

    def encode_images(self, pixels: Sequence[Tensor]) -> ImageBatch:
        """See the base class."""
        maps = self.model.vision_backbone(self._process(pixels)["pixel_values"])
        states = self.model.encoder(maps, return_dict=True).extracted_states
        return ImageBatch(states, size_of(pixels))

    def read(self, images: ImageBatch, texts: TextGroup) -> Scored:
        """See the base class."""
        classes, tasks, mask = texts.features  # (Kp, P, D), (L, P, D), (P, L)
        n, p = len(images.features[0]), len(mask)
        outputs = self.model.decoder(
            [level.repeat_interleave(p, 0) for level in images.features],
            classes.repeat(1, n, 1),
            tasks.repeat(1, n, 1),
            mask.repeat(n, 1),
            return_dict=True,
        )
        boxes, logits = outputs.decoder_coords[-1].float(), outputs.decoder_classes[-1].float()
        return Scored(boxes.unflatten(0, (n, p)), logits.sigmoid().unflatten(0, (n, p)))

    @property
    def _limit(self) -> int:
        return self.model.config.text_config.max_position_embeddings

    def _counts(self, texts: Sequence[str]) -> list[int]:
        options = {"add_special_tokens": False, "truncation": False, "verbose": False}
        return [len(ids) for ids in self.processor.tokenizer(list(texts), **options)["input_ids"]]

    def _tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask, (texts, limit) int64."""
        tokens = self.processor.tokenizer(
            list(texts), padding="max_length", max_length=self._limit, return_tensors="pt"
        ).to(self.device)
        return tokens["input_ids"], tokens["attention_mask"]
