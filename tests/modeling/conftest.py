from small_detectors import build, zoo_cfg

__all__ = ["build", "zoo_cfg"]
