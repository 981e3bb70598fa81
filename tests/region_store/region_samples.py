"""Small stores for the tests of this folder."""

import torch

from ovd_d2.region_store import RegionStoreWriter, StoreFacts
from ovd_d2.structures import RegionEmbeddings

ENCODER = "openai-clip:ViT-B/32@40d365715913"


def facts(image_ids=range(10), *, dim=4, **changes):
    known = {"encoder_id": ENCODER, "dim": dim, "crop_rule": "1x", "proposals": "gt"}
    return StoreFacts.for_dataset("tiny", image_ids, **{**known, **changes})


def regions_of(seed, count=3, dim=4, scores=False):
    """Regions that depend on ``seed`` alone; embeddings float16, as a store keeps them."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values.flatten(1) * 640
    embeddings = torch.randn(count, dim, generator=generator)
    embeddings = torch.nn.functional.normalize(embeddings, dim=1).half()
    return RegionEmbeddings(
        boxes, embeddings, torch.rand(count, generator=generator) if scores else None
    )


def write_store(path, image_ids=range(10), *, per_shard=4, dim=4, **changes):
    """A finished store with ``regions_of(n)`` for the n-th image."""
    image_ids = list(image_ids)
    with RegionStoreWriter(path, facts(image_ids, dim=dim, **changes)) as writer:
        for number, image_id in enumerate(image_ids):
            writer.append(image_id, regions_of(number, number % 4, dim))
            if number % per_shard == per_shard - 1:
                writer.flush()
    return path


def same(left, right):
    """Bit for bit."""
    if (left.scores is None) != (right.scores is None):
        return False
    return (
        torch.equal(left.boxes, right.boxes)
        and torch.equal(left.embeddings, right.embeddings)
        and (left.scores is None or torch.equal(left.scores, right.scores))
    )
