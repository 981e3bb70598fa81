"""Evaluating on a dataset means asking for that dataset's categories."""

from collections.abc import Iterator
from contextlib import contextmanager

from detectron2.config import CfgNode
from torch import nn

from ovd_d2.data.named_datasets import asks_for_phrases
from ovd_d2.errors import OVDError
from ovd_d2.language import Vocabulary, read_novel_names


@contextmanager
def vocabulary_for(cfg: CfgNode, model: nn.Module, dataset_name: str) -> Iterator[None]:
    """Inside, an open-vocabulary ``model`` knows the categories of ``dataset_name``, followed by
    the names of ``TEST.DISTRACTORS``; with ``TEST.CLASS_AGNOSTIC.ONLY`` one that finds objects
    without a vocabulary has none.

    Afterwards it has the vocabulary of before again. Closed-set models are left alone, and so is
    any where the data set asks for phrases of captions, or with ``TEST.LINEAR_PROBE.ENABLED``.
    In a trainer of one's own::

        with ovd_d2.vocabulary_for(cfg, model, name):
            inference_on_dataset(model, loader, evaluator)

    Args:
        cfg: reads ``TEST.DISTRACTORS``, ``TEST.CLASS_AGNOSTIC``, ``TEST.LINEAR_PROBE`` and
            ``DATASETS.NOVEL_NAMES``.
        model: possibly wrapped by DDP.
        dataset_name: a registered data set.

    Raises:
        OVDError: names that cannot be had or embedded; the model is unchanged then.
    """
    from ovd_d2.modeling.open_vocabulary import (
        get_vocabulary,
        is_open_vocabulary,
        part_with,
        set_vocabulary,
    )

    without = cfg.TEST.LINEAR_PROBE.ENABLED or asks_for_phrases(dataset_name)
    if without or not is_open_vocabulary(model):
        yield
        return
    before = get_vocabulary(model)
    keys = cfg.TEST.CLASS_AGNOSTIC
    if keys.ENABLED and keys.ONLY and part_with(model, "finds_objects") is not None:
        classes = None
    else:
        classes = Vocabulary.load(_test_vocabulary(cfg, dataset_name))
        classes = classes.with_novel(read_novel_names(cfg.DATASETS.NOVEL_NAMES))
    set_vocabulary(model, classes)
    try:
        yield
    finally:
        set_vocabulary(model, before)


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
