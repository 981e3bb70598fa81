"""Data sets of label maps in memory and files, and score maps that predict given classes."""

import contextlib

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from torch.nn.functional import one_hot


@contextlib.contextmanager
def label_map_dataset(name, folder, maps, classes, extra=None, **metadata):
    """Registers ``maps`` (N, H, W) as PNG files; ``extra``: further entries of each record."""
    records = []
    for i, labels in enumerate(maps):
        path = folder / f"{name}_{i}.png"
        Image.fromarray(np.asarray(labels).astype(np.uint8)).save(path)
        height, width = labels.shape
        record = {"file_name": f"{i}.jpg", "sem_seg_file_name": str(path), "image_id": i,
                  "height": height, "width": width}  # fmt: skip
        records.append({**record, **(extra[i] if extra else {})})
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(stuff_classes=list(classes), **metadata)
    try:
        yield records
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def scores_of(labels, num_classes):
    """(K, H, W) float scores whose largest is that of ``labels`` (H, W)."""
    return one_hot(torch.as_tensor(np.asarray(labels)).long(), num_classes).permute(2, 0, 1).float()


def evaluated(evaluator, records, predictions, num_classes):
    """``evaluate()`` after one batch of ``predictions`` (N, H, W)."""
    evaluator.reset()
    outputs = [{"sem_seg": scores_of(p, num_classes)} for p in predictions]
    evaluator.process(records, outputs)
    return evaluator.evaluate()
