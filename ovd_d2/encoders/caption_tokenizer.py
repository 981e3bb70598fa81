"""Captions to tokens that know which characters they came from.

Letters: B captions, L tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ovd_d2.encoders.huggingface import load_tokenizer, model_folder, packaged_minilm_folder
from ovd_d2.errors import OVDError
from ovd_d2.structures.grounding import CaptionTokens

# What a fast tokenizer is read from: one of these, or BERT's word list.
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")
_MINILM, _HUB = "minilm", "hf:"


class CaptionTokenizer:
    """A Hugging Face fast tokenizer for captions with phrases.

    Captions are padded to the longest of a batch, not to ``max_tokens``: on padding that is masked
    nothing depends.

    Args:
        tokenizer: a fast tokenizer of transformers, the only kind that knows characters.
        max_tokens: of a caption, special tokens included.

    Raises:
        OVDError: the tokenizer is not a fast one, or its model reads fewer than ``max_tokens``.
    """

    def __init__(self, tokenizer: Any, max_tokens: int = 256) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise OVDError(
                f"tokenizer {type(tokenizer).__name__} does not know the characters of its tokens; "
                "give a fast tokenizer (a folder with tokenizer.json)"
            )
        specials = tokenizer.num_special_tokens_to_add()
        if not specials < max_tokens <= tokenizer.model_max_length:
            raise OVDError(
                f"max_tokens is {max_tokens}; for this tokenizer it must be from {specials + 1} to "
                f"{tokenizer.model_max_length}"
            )
        if tokenizer.pad_token is None:
            raise OVDError("tokenizer has no padding token; set its pad_token")
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.special_tokens = specials

    @classmethod
    def load(cls, source: str, max_tokens: int = 256) -> "CaptionTokenizer":
        """The tokenizer that ``source`` names.

        Args:
            source: a folder that transformers saved; a model on the Hugging Face hub, with or
                without "hf:" before it ("bert-base-uncased"); or "minilm", the packaged sentence
                encoder, whose tokens are those of BERT-uncased.
            max_tokens: see the class.

        Raises:
            OVDError: there is none, or no tokenizer files in it.
        """
        if source == _MINILM:
            return cls(load_tokenizer(packaged_minilm_folder()), max_tokens)
        name = source.removeprefix(_HUB)
        folder = Path(name).expanduser()
        if not folder.is_dir():
            folder = model_folder(name)
        if not any((folder / file).is_file() for file in _TOKENIZER_FILES):
            raise OVDError(
                f"{folder} has no tokenizer files ({', '.join(_TOKENIZER_FILES[:2])}, ...); copy "
                "the model's complete folder"
            )
        return cls(load_tokenizer(folder), max_tokens)

    def __call__(self, captions: Sequence[str], *, truncate: bool = False) -> CaptionTokens:
        """
        Args:
            captions: B texts.
            truncate: cut captions that are too long after ``max_tokens`` tokens (the end token is
                kept) instead of refusing them; phrases behind the cut then have no token.

        Returns:
            CaptionTokens (B, L) on the CPU, L the longest caption of the batch.

        Raises:
            OVDError: a caption of more than ``max_tokens`` tokens.
        """
        if not len(captions):
            return CaptionTokens(
                ids=torch.zeros(0, 0, dtype=torch.int64),
                mask=torch.zeros(0, 0, dtype=torch.bool),
                offsets=torch.zeros(0, 0, 2, dtype=torch.int64),
            )
        encoded = self._encode(
            captions,
            return_offsets_mapping=True,
            padding=True,
            padding_side="right",
            truncation=truncate,
            max_length=self.max_tokens if truncate else None,
            return_tensors="pt",
        )
        mask = encoded["attention_mask"].bool()
        lengths = mask.sum(dim=1)
        if int(lengths.max()) > self.max_tokens:
            longest = int(lengths.argmax())
            raise OVDError(
                f"caption {captions[longest][:60]!r} has {int(lengths[longest])} tokens; at most "
                f"{self.max_tokens} can be read: shorten it, or split it into several"
            )
        return CaptionTokens(encoded["input_ids"], mask, encoded["offset_mapping"])

    def count(self, texts: Sequence[str]) -> Tensor:
        """(B,) int64, the tokens of each text without the special ones; of any length."""
        if not len(texts):
            return torch.zeros(0, dtype=torch.int64)
        ids = self._encode(texts, add_special_tokens=False, truncation=False)["input_ids"]
        return torch.tensor([len(tokens) for tokens in ids])

    def _encode(self, texts: Sequence[str], **options: Any) -> Any:
        # verbose: no warning about texts longer than the model reads, which are refused here.
        return self.tokenizer(list(texts), return_token_type_ids=False, verbose=False, **options)
