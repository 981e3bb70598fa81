from tricky_detections import content, masked, wanted, write

__all__ = ["content", "masked", "wanted", "write"]
