"""Tiny randomly initialised detectors of transformers, saved as users save them.

Random weights score all names nearly alike; ``spread`` makes differences that a test can see.
"""

from pathlib import Path

import torch

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "every", "cat", "red", "dog", "all",
         "objects", "object", "mug", "zebra", "crossing", "bow", "traffic", "light"]  # fmt: skip
# Where BERT has them: the models know these numbers.
SPECIAL = {"[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}
IMAGES = {"shortest_edge": 80, "longest_edge": 128}


def tiny_backbone(*stages):
    from transformers import ResNetConfig

    return ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1],
                        layer_type="basic", out_features=list(stages))  # fmt: skip


def save_detr(folder: Path):
    from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessor

    config = DetrConfig(backbone_config=tiny_backbone("stage4"), use_timm_backbone=False,
                        backbone=None, use_pretrained_backbone=False, d_model=16, encoder_layers=1,
                        decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
                        encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=12,
                        num_labels=3)  # fmt: skip
    model = DetrForObjectDetection(config).eval()
    model.save_pretrained(folder)
    DetrImageProcessor(size=IMAGES).save_pretrained(folder)
    return model


def spread(model, factor=4.0):
    """Larger weights of all matrices but the embeddings."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "embed" not in name:
                weight.mul_(factor)
    return model


def bert_tokenizer():
    """BERT's own numbers for the special tokens; letters for words that it does not know."""
    from transformers import BertTokenizerFast

    letters = [chr(ord("a") + k) for k in range(26)]
    words = [w for w in WORDS if w not in SPECIAL] + letters + [f"##{c}" for c in letters]
    words += [str(k) for k in range(10)] + [f"##{k}" for k in range(10)]
    vocab = dict(SPECIAL)
    free = (k for k in range(2000) if k not in SPECIAL.values())
    for word in words:
        vocab[word] = next(free)
    return BertTokenizerFast(vocab=vocab, model_max_length=512)


def dino_config(config_class, **more):
    from transformers import BertConfig

    text = BertConfig(vocab_size=1200, hidden_size=16, num_hidden_layers=1,
                      num_attention_heads=2, intermediate_size=16)  # fmt: skip
    return config_class(
        backbone_config=tiny_backbone("stage2", "stage3", "stage4"), backbone=None,
        use_timm_backbone=False, use_pretrained_backbone=False, text_config=text.to_dict(),
        d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=10, **more,
    )  # fmt: skip


def save_dino(folder: Path, mm=False, **more):
    import transformers
    from transformers import GroundingDinoImageProcessor, GroundingDinoProcessor

    kind = "MMGroundingDino" if mm else "GroundingDino"
    config = dino_config(getattr(transformers, f"{kind}Config"), **more)
    model = spread(getattr(transformers, f"{kind}ForObjectDetection")(config)).eval()
    model.save_pretrained(folder)
    images = GroundingDinoImageProcessor(size=IMAGES)
    GroundingDinoProcessor(images, bert_tokenizer()).save_pretrained(folder)
    return model


def save_mm_dino(folder: Path, **more):
    return save_dino(folder, mm=True, **more)


def save_owl(folder: Path, version=2):
    import transformers
    from tiny_clip_models import save_clip_tokenizer

    kind = "Owlv2" if version == 2 else "OwlViT"
    layers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
              "num_attention_heads": 2}  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(
        text_config={**layers, "vocab_size": 49408},
        vision_config={**layers, "image_size": 64, "patch_size": 16}, projection_dim=16,
    )  # fmt: skip
    model = getattr(transformers, f"{kind}ForObjectDetection")(config).eval()
    with torch.no_grad():  # boxes where their patches are
        model.box_head.dense2.weight.mul_(0.1)
    model.save_pretrained(folder)
    save_clip_tokenizer(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, model_max_length=16)
    images = getattr(transformers, f"{kind}ImageProcessor")(size={"height": 64, "width": 64})
    getattr(transformers, f"{kind}Processor")(images, tokenizer).save_pretrained(folder)
    return model


def save_owlvit(folder: Path):
    return save_owl(folder, version=1)


def save_omdet(folder: Path, words_differ=True):
    from tiny_clip_models import save_clip_tokenizer
    from transformers import (
        AutoTokenizer,
        CLIPTextConfig,
        DetrImageProcessor,
        OmDetTurboConfig,
        OmDetTurboForObjectDetection,
        OmDetTurboProcessor,
    )

    text = CLIPTextConfig(hidden_size=24, intermediate_size=16, num_hidden_layers=1,
                          num_attention_heads=2, vocab_size=49408, projection_dim=24)  # fmt: skip
    backbone = tiny_backbone("stage2", "stage3", "stage4")
    config = OmDetTurboConfig(
        text_config=text, backbone_config=backbone, image_size=64,
        apply_layernorm_after_vision_backbone=False,
        text_projection_in_dim=24, text_projection_out_dim=24, task_encoder_hidden_dim=16,
        class_embed_dim=24, num_queries=10, encoder_hidden_dim=16, encoder_attention_heads=2,
        encoder_dim_feedforward=16, encoder_layers=1, vision_features_channels=[16, 16, 16],
        encoder_in_channels=list(backbone.hidden_sizes[1:]), decoder_hidden_dim=16,
        decoder_num_heads=2, decoder_dim_feedforward=16, decoder_num_layers=1,
    )  # fmt: skip
    model = OmDetTurboForObjectDetection(config).eval()
    if words_differ:  # at first the projection is zero: tasks differ, names do not
        torch.nn.init.normal_(model.language_backbone.text_projection)
    model.save_pretrained(folder)
    save_clip_tokenizer(folder)
    images = DetrImageProcessor(size={"height": 64, "width": 64})
    tokenizer = AutoTokenizer.from_pretrained(folder, model_max_length=77)
    OmDetTurboProcessor(images, tokenizer).save_pretrained(folder)
    return model


SAVE = {
    "grounding-dino": save_dino,
    "mm-grounding-dino": save_mm_dino,
    "owlv2": save_owl,
    "owlvit": save_owlvit,
    "omdet-turbo": save_omdet,
}
"""By model_type."""
