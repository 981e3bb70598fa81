"""A tiny random open_clip model on disk: of open_clip, or of a stand-in where it is missing.

The stand-in has the functions of open_clip 3 that the package calls, with the same arguments, over
the networks of openai-clip, which open_clip's are made after.
"""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

NAME = "tiny-test"
SETTINGS = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}


def stand_in() -> ModuleType:
    from ovd_d2.encoders.openai_clip import import_clip

    clip, configs = import_clip(), {}
    module = ModuleType("open_clip")

    def add_model_config(folder):
        configs.update({p.stem: json.loads(p.read_text()) for p in Path(folder).glob("*.json")})

    def create_model(model_name, pretrained=None, *, precision="fp32", weights_only=True,
                     require_pretrained=False):  # fmt: skip
        settings = configs[model_name]
        image, text = settings["vision_cfg"], settings["text_cfg"]
        model = clip.model.CLIP(
            settings["embed_dim"], image["image_size"], image["layers"], image["width"],
            image["patch_size"], text["context_length"], text["vocab_size"], text["width"],
            text["heads"], text["layers"],
        )  # fmt: skip
        if pretrained and Path(pretrained).is_file():
            model.load_state_dict(torch.load(pretrained, weights_only=weights_only))
        elif require_pretrained:
            raise RuntimeError(f"Required pretrained weights ({pretrained}) could not be loaded.")
        model.visual.preprocess_cfg = {
            "size": (image["image_size"],) * 2, "mode": "RGB", "resize_mode": "shortest",
            "interpolation": "bicubic", "fill_color": 0,
            "mean": (0.48145466, 0.4578275, 0.40821073),
            "std": (0.26862954, 0.26130258, 0.27577711),
        }  # fmt: skip
        return model

    module.add_model_config, module.create_model = add_model_config, create_model
    module.tokenize = lambda texts: clip.tokenize(texts, truncate=True).long()
    module.get_tokenizer = lambda model_name: module.tokenize
    module.image_transform = lambda side, is_train: clip.clip._transform(side)
    return module


@pytest.fixture
def open_clip_model(tmp_path, monkeypatch):
    """(spec, the model it names), its config and weights in a folder."""
    if importlib.util.find_spec("open_clip") is None:
        monkeypatch.setitem(sys.modules, "open_clip", stand_in())
    import open_clip

    folder = tmp_path / "open_clip"
    folder.mkdir()
    (folder / f"{NAME}.json").write_text(json.dumps(SETTINGS))
    open_clip.add_model_config(folder)
    model = open_clip.create_model(NAME).eval()
    torch.save(model.state_dict(), folder / "weights.pt")
    return f"open_clip:{NAME}:{folder / 'weights.pt'}", model
