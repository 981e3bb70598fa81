"""Whole models that Detectron2's META_ARCHITECTURE names."""

from .clip import CLIP
from .detclip import DetCLIP
from .glip import GLIP
from .groupvit import GroupViT
from .huggingface_detector import HuggingFaceDetector
from .lseg import LSeg
from .mavl import MAVL

__all__ = ["CLIP", "GLIP", "MAVL", "DetCLIP", "GroupViT", "HuggingFaceDetector", "LSeg"]
