"""Detections in the formats of training code and label tools.

| format | files | boxes | masks | scores |
|---|---|---|---|---|
| coco | annotations.json | x, y, width, height in pixels | as they are | score |
| yolo | labels/NAME.txt, data.yaml, classes.txt | shares of the image | polygons | by option |
| voc | Annotations/NAME.xml, ImageSets/Main/train.txt | pixels from 1 | none | confidence |
| cvat | annotations.xml, labels.json | pixels | polygons | attribute score |
| label-studio | tasks.json, label_config.xml | percent | polygons | of predictions |
"""

from .detection_set import DetectedImage, DetectedObject, DetectionSet
from .options import FormatOptions
from .read_coco import from_coco, read_detections
from .write import FORMATS, check_formats, write_detections

__all__ = [
    "FORMATS",
    "DetectedImage",
    "DetectedObject",
    "DetectionSet",
    "FormatOptions",
    "check_formats",
    "from_coco",
    "read_detections",
    "write_detections",
]
