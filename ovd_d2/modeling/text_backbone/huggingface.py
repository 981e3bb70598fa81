"""BERT-like encoders of transformers as text backbones.

Letters: N captions, L tokens, D text width.
"""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ovd_d2.encoders.caption_tokenizer import CaptionTokenizer
from ovd_d2.encoders.huggingface import load_model, model_folder, packaged_minilm_folder
from ovd_d2.errors import OVDError
from ovd_d2.structures.grounding import CaptionTokens

from .registry import TEXT_BACKBONE_REGISTRY

_BERT_BASE = "bert-base-uncased"


@TEXT_BACKBONE_REGISTRY.register()
class HuggingFaceTextBackbone(nn.Module):
    """Captions to the last hidden state of a transformers encoder; fine-tuned unless frozen.

    Attributes:
        tokenizer: captions -> :class:`CaptionTokens`.
        dim: D.
        num_heads: attention heads of a layer.
    """

    @configurable
    def __init__(self, *, model: nn.Module, tokenizer: CaptionTokenizer, freeze: bool = False):
        """
        Args:
            model: an encoder with ``last_hidden_state`` (BERT, RoBERTa, MiniLM ...).
            tokenizer: with the vocabulary that ``model`` reads.
            freeze: no gradients, and no dropout in training.

        Raises:
            OVDError: a model of another kind.
        """
        super().__init__()
        settings = model.config
        if not hasattr(settings, "num_attention_heads") or hasattr(settings, "text_config"):
            raise OVDError(
                f"a {settings.model_type} model gives no feature per token here: give "
                "MODEL.TEXT_BACKBONE.MODEL a BERT-like encoder."
            )
        model.pooler = None  # its output is not used, so it would be left without a gradient
        self.model = model.requires_grad_(not freeze)
        self.tokenizer = tokenizer
        self.freeze = freeze
        self.dim = settings.hidden_size
        self.num_heads = settings.num_attention_heads

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The encoder that ``MODEL.TEXT_BACKBONE.MODEL`` names.

        Raises:
            OVDError: it cannot be had.
        """
        keys = cfg.MODEL.TEXT_BACKBONE
        if keys.MODEL == _BERT_BASE:  # its words are those of the packaged MiniLM
            model, words = _bert_base(), "minilm"
        elif keys.MODEL == "minilm":
            model, words = load_model(packaged_minilm_folder()), "minilm"
        elif keys.MODEL.startswith("hf:"):
            folder = model_folder(keys.MODEL.removeprefix("hf:"))
            model, words = load_model(folder), str(folder)
        else:
            raise OVDError(
                f"MODEL.TEXT_BACKBONE.MODEL is {keys.MODEL!r}; write hf:NAME_OR_FOLDER, minilm or "
                f"{_BERT_BASE}."
            )
        tokenizer = CaptionTokenizer.load(words, keys.MAX_TOKENS)
        return {"model": model, "tokenizer": tokenizer, "freeze": keys.FREEZE}

    def train(self, mode: bool = True) -> "HuggingFaceTextBackbone":
        return super().train(mode and not self.freeze)

    def forward(self, tokens: CaptionTokens) -> Tensor:
        """(N, L, D) features; rows of padding hold numbers without a meaning."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            out = self.model(input_ids=tokens.ids, attention_mask=tokens.mask.long())
        return out.last_hidden_state


def _bert_base() -> nn.Module:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(), add_pooling_layer=False)
