"""Evaluating on a dataset means asking for that dataset's categories."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from ovd_d2.errors import OVDError


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
        novel_names=cfg.DATASETS.NOVEL_NAMES,
    )


@contextmanager
def vocabulary_for(cfg: CfgNode, model: nn.Module, dataset_name: str) -> Iterator[None]:
    """Inside, an open-vocabulary ``model`` knows the categories of ``dataset_name``, followed by
    the names of ``TEST.DISTRACTORS``.

    Afterwards it has the training vocabulary of ``cfg`` again. Closed-set models are left alone.
    In a trainer of one's own::

        with ovd_d2.vocabulary_for(cfg, model, name):
            inference_on_dataset(model, loader, evaluator)

    Args:
        cfg: says how names are embedded (``MODEL.OPEN_VOCAB``).
        model: possibly wrapped by DDP.
        dataset_name: a registered data set.

    Raises:
        OVDError: names that cannot be had or embedded; the model is unchanged then.
    """
    from ovd_d2.modeling import CLIP, get_vocabulary, set_vocabulary

    unwrapped = getattr(model, "module", model)
    if isinstance(unwrapped, CLIP):
        with _named_classes(cfg, unwrapped, dataset_name):
            yield
        return
    if get_vocabulary(model) is None:
        yield
        return
    training = class_embeddings(cfg, cfg.MODEL.OPEN_VOCAB.VOCABULARY)
    set_vocabulary(model, *class_embeddings(cfg, _test_vocabulary(cfg, dataset_name)))
    try:
        yield
    finally:
        set_vocabulary(model, *training)


def _test_vocabulary(cfg: CfgNode, dataset_name: str) -> str:
    distractors = cfg.TEST.DISTRACTORS
    if not distractors:
        return f"dataset:{dataset_name}"
    if not distractors.startswith("imagenet21k:"):
        raise OVDError(f"TEST.DISTRACTORS is '{distractors}'; write \"\" or imagenet21k:N.")
    if cfg.MODEL.OPEN_VOCAB.TEXT_EMBEDDINGS:
        raise OVDError(
            "TEST.DISTRACTORS needs a text encoder for its names: set "
            'MODEL.OPEN_VOCAB.TEXT_EMBEDDINGS "".'
        )
    return f"dataset:{dataset_name}+{distractors}"


@contextmanager
def _named_classes(cfg: CfgNode, model: nn.Module, dataset_name: str) -> Iterator[None]:
    """Inside, a CLIP model classifies into the categories of ``dataset_name``, embedded by its own
    text side with the prompts of ``cfg``."""
    from ovd_d2.language import TextEmbeddingBank, Vocabulary

    if cfg.TEST.DISTRACTORS:
        raise OVDError('TEST.DISTRACTORS is for detectors: set it to "" for a CLIP model.')
    open_vocab = cfg.MODEL.OPEN_VOCAB
    vocabulary = Vocabulary.load(f"dataset:{dataset_name}")
    encoder = model.text_encoder()
    with tempfile.TemporaryDirectory() as folder:
        bank = TextEmbeddingBank(encoder, open_vocab.PROMPTS, open_vocab.USE_SYNONYMS, folder)
        model.set_vocabulary(vocabulary, bank.embed(vocabulary))
    try:
        yield
    finally:
        model.clear_vocabulary()
