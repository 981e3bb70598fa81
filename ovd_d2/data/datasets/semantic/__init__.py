"""Data sets of label maps: a class number for every pixel."""

from ovd_d2.data.datasets.semantic.label_maps import read_label_map

__all__ = ["read_label_map"]
