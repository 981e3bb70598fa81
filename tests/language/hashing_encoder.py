"""A text encoder made of a hash function: fast, deterministic, and it counts its work."""

import hashlib

import torch


class HashingEncoder:
    def __init__(self, dim=8, encoder_id="hashing@000000000000"):
        self.dim = dim
        self.encoder_id = encoder_id
        self.seen = []

    def encode(self, texts):
        self.seen.append(list(texts))
        seeds = [
            int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") for text in texts
        ]
        rows = [torch.randn(self.dim, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return torch.nn.functional.normalize(torch.stack(rows), dim=1)
