"""An image-text model that needs no file: a fixed random projection of an 8 x 8 picture."""

import torch

from ovd_d2.encoders import ImagePreprocessing, ImageTextModel

D = 6


class Text:
    encoder_id, dim = "tiny@0", D


def tiny_model(encoder_id="tiny@0"):
    weights = torch.randn(3 * 8 * 8, D, generator=torch.Generator().manual_seed(0))
    text = Text()
    text.encoder_id = encoder_id
    return ImageTextModel(text, lambda pixels: pixels.flatten(1) @ weights, ImagePreprocessing(8))
