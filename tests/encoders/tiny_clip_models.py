"""Tiny randomly initialised models of the real classes, saved as users save them."""

import json
from pathlib import Path

import torch

WORDS = ["a", "photo", "of", "the", "cat", "dog", "red", "mug", "can", "sky", "."]


def openai_clip_model(seed=0, vocab_size=49408):
    from ovd_d2.encoders.openai_clip import import_clip

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = import_clip().model.CLIP(
            embed_dim=32, image_resolution=32, vision_layers=1, vision_width=64,
            vision_patch_size=16, context_length=77, vocab_size=vocab_size,
            transformer_width=64, transformer_heads=1, transformer_layers=2,
        )  # fmt: skip
    return model.eval()


def save_clip_tokenizer(folder: Path, merges: int | None = 3000):
    """CLIP's numbers of tokens; by its first ``merges`` alone, which is read sooner: rare words
    have more tokens then."""
    from transformers import CLIPTokenizer

    from ovd_d2.encoders.openai_clip import import_clip

    tokenizer = import_clip().clip._tokenizer
    pairs = list(tokenizer.bpe_ranks)[:merges]
    joined = {"".join(pair) for pair in pairs}
    vocab = {t: k for t, k in tokenizer.encoder.items() if k < 512 or k > 49405 or t in joined}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs)]
    (folder / "merges.txt").write_text("\n".join(lines))
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)


def save_word_tokenizer(folder: Path, longest=16):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: place for place, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", model_max_length=longest
    ).save_pretrained(folder)


def _text(cls, **extra):
    return cls(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, **extra
    )  # fmt: skip


def save_hf_clip(folder: Path, text_only=False):
    from transformers import (
        CLIPConfig,
        CLIPModel,
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        CLIPVisionConfig,
    )

    text = _text(CLIPTextConfig, vocab_size=49408, projection_dim=24,
                 bos_token_id=49406, eos_token_id=49407)  # fmt: skip
    vision = _text(CLIPVisionConfig, image_size=32, patch_size=16, projection_dim=24)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if text_only:
            model = CLIPTextModelWithProjection(text)
        else:
            config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(),
                                projection_dim=24)  # fmt: skip
            model = CLIPModel(config)
    model.save_pretrained(folder)
    save_clip_tokenizer(folder)
    return model.eval()


def save_siglip2_tokenizer(folder: Path):
    """Letter by letter; as published, it makes lower case by itself and pads on the right."""
    from transformers import Siglip2Tokenizer

    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *sorted(set("".join(WORDS)))]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    Siglip2Tokenizer(vocabulary, merges=[], padding_side="right").save_pretrained(folder)


def save_hf_siglip(folder: Path, positions=12, family="Siglip"):
    import transformers

    def cls(name):
        return getattr(transformers, f"{family}{name}")

    text = _text(cls("TextConfig"), vocab_size=32, max_position_embeddings=positions,
                 projection_size=32, pad_token_id=0)  # fmt: skip
    sizes = {"image_size": 32} if family == "Siglip" else {"num_patches": 4}
    vision = _text(cls("VisionConfig"), patch_size=16, **sizes)
    config = cls("Config")(text_config=text.to_dict(), vision_config=vision.to_dict())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = cls("Model")(config)
        model.logit_scale.data.fill_(2.0)
        model.logit_bias.data.fill_(-3.0)
    model.save_pretrained(folder)
    save_word_tokenizer(folder, positions + 4)
    return model.eval()


def save_hf_bert(folder: Path, pooling=None):
    from transformers import BertConfig, BertModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(_text(BertConfig, vocab_size=20, max_position_embeddings=16))
    model.save_pretrained(folder)
    save_word_tokenizer(folder)
    if pooling:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({pooling: True}))
    return model.eval()
