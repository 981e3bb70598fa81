"""Region embeddings on disk: written once by a teacher, read at every training step.

A store is a folder: shards (``rank00000-000000.safetensors``: flat tensors, see ``shard.py``) and
``manifest.json`` (what they were made from, their sizes and sha256). It is keyed by the data set's
image ids. No pickle.
"""

from .manifest import StoreFacts, fingerprint_of, read_all_manifests
from .reader import MissingImageError, RegionStore
from .verification import ShardProblem, is_finished, verify
from .writer import RegionStoreWriter, drop_shards, merge_manifests

__all__ = [
    "MissingImageError",
    "RegionStore",
    "RegionStoreWriter",
    "ShardProblem",
    "StoreFacts",
    "drop_shards",
    "fingerprint_of",
    "is_finished",
    "merge_manifests",
    "read_all_manifests",
    "verify",
]
