"""Evaluating on a dataset means asking for that dataset's categories."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from detectron2.config import CfgNode
from torch import nn


def class_embeddings(cfg: CfgNode, vocabulary: str) -> tuple[Any, Any]:
    """``vocabulary`` and its embeddings by the encoder and prompts of ``cfg``.

    Args:
        cfg: the config.
        vocabulary: as ``MODEL.OPEN_VOCAB.VOCABULARY``.

    Returns:
        (Vocabulary, TextEmbeddings).
    """
    from ovd_d2.language import build_class_embeddings

    open_vocab = cfg.MODEL.OPEN_VOCAB
    return build_class_embeddings(
        vocabulary=vocabulary,
        train_datasets=cfg.DATASETS.TRAIN,
        text_embeddings=open_vocab.TEXT_EMBEDDINGS,
        text_encoder=open_vocab.TEXT_ENCODER,
        prompts=open_vocab.PROMPTS,
        use_synonyms=open_vocab.USE_SYNONYMS,
        embed_dim=open_vocab.EMBED_DIM,
    )


@contextmanager
def dataset_vocabulary(cfg: CfgNode, model: nn.Module, dataset_name: str) -> Iterator[None]:
    """Inside, an open-vocabulary ``model`` knows the categories of ``dataset_name``.

    Afterwards it has the training vocabulary of ``cfg`` again. Closed-set models are left alone.
    """
    from ovd_d2.modeling import get_vocabulary, set_vocabulary

    if get_vocabulary(model) is None:
        yield
        return
    training = class_embeddings(cfg, cfg.MODEL.OPEN_VOCAB.VOCABULARY)
    set_vocabulary(model, *class_embeddings(cfg, f"dataset:{dataset_name}"))
    try:
        yield
    finally:
        set_vocabulary(model, *training)
