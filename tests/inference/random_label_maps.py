"""A model of label maps without training: a pixel is of the word whose letters fit its colour."""

import pytest
import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn
from torch.nn.functional import interpolate

from ovd_d2.language import as_vocabulary, configured_vocabulary

NAMES = "background, red mug, sea"
YAML = """
MODEL:
  META_ARCHITECTURE: LettersOfPixels
  WEIGHTS: ""
  DEVICE: cpu
  PIXEL_MEAN: [0, 0, 0]
  PIXEL_STD: [255, 255, 255]
  OPEN_VOCAB: {VOCABULARY: "background, red mug, sea"}
INPUT: {FORMAT: RGB, MIN_SIZE_TEST: 40, MAX_SIZE_TEST: 90}
DATASETS: {TRAIN: (), TEST: ()}
VERSION: 2
"""


def letters_of_pixels():
    """Registers the meta-architecture, once."""
    if "LettersOfPixels" in META_ARCH_REGISTRY:
        return

    @META_ARCH_REGISTRY.register()
    class LettersOfPixels(nn.Module):
        """Scores of word k are the channels of a pixel, weighted by the word's first letters."""

        @configurable
        def __init__(self, *, vocabulary):
            super().__init__()
            self.letters = nn.Embedding(128, 3)
            self.set_vocabulary(vocabulary)

        @classmethod
        def from_config(cls, cfg):
            spec = cfg.MODEL.OPEN_VOCAB.VOCABULARY
            return {"vocabulary": configured_vocabulary(spec, cfg.DATASETS.TRAIN)}

        @property
        def device(self):
            return self.letters.weight.device

        def set_vocabulary(self, vocabulary):
            self.vocabulary = None if vocabulary is None else as_vocabulary(vocabulary)

        def word_vectors(self):
            codes = torch.tensor(
                [[ord(c) % 128 for c in f"{n:<4}"[:4]] for n in self.vocabulary.names]
            )
            return self.letters(codes).sum(1)

        def forward(self, samples):
            if self.training:
                return {"loss_sem_seg": sum(self.loss(s) for s in samples) / len(samples)}
            outputs = []
            for sample in samples:
                size = sample["height"], sample["width"]
                scores = self.scores(sample)
                outputs.append({"sem_seg": interpolate(scores[None], size, mode="bilinear")[0]})
            return outputs

        def scores(self, sample):
            pixels = sample["image"].float() / 255 - 0.5
            return torch.einsum("kc,chw->khw", self.word_vectors(), pixels)

        def loss(self, sample):
            scores = self.scores(sample)[None]
            return nn.functional.cross_entropy(scores, sample["sem_seg"][None], ignore_index=255)


@pytest.fixture(scope="session")
def label_map_config(tmp_path_factory):
    """The yaml of a model of label maps."""
    letters_of_pixels()
    path = tmp_path_factory.mktemp("label_maps") / "config.yaml"
    path.write_text(YAML)
    return path


@pytest.fixture(scope="session")
def label_map_checkpoint(label_map_config):
    """Its weights, random."""
    from detectron2.modeling import build_model

    from ovd_d2.config_file import load_config

    torch.manual_seed(1)
    model = build_model(load_config(str(label_map_config)))
    path = label_map_config.with_name("model_final.pth")
    torch.save({"model": model.state_dict(), "iteration": 3}, path)
    return path


@pytest.fixture(scope="session")
def label_map_model(label_map_config, label_map_checkpoint):
    """Both as ``ovd export`` writes them."""
    from ovd_d2.inference.export import export_model

    out = label_map_config.with_name("pixels")
    export_model(label_map_checkpoint, label_map_config, out)
    return out
