"""Offline work: region stores, pseudo labels, converted checkpoints, exported teachers."""
