"""Specs: read in one place, refused in one sentence, extended with one call."""

import pytest
import torch

from ovd_d2.encoders import (
    EncoderScheme,
    ImagePreprocessing,
    ImageTextModel,
    build_image_text_model,
    build_text_encoder,
    register_encoder,
    registry,
    text_encoder_id,
)
from ovd_d2.errors import OVDError


class Letters:
    dim = 3

    def __init__(self, encoder_id):
        self.encoder_id = encoder_id

    def encode(self, texts):
        counts = torch.tensor([[text.count(letter) + 0.1 for letter in "abc"] for text in texts])
        return torch.nn.functional.normalize(counts, dim=1)


def test_another_package_adds_a_scheme_with_one_call(monkeypatch):
    monkeypatch.setattr(registry, "_SCHEMES", dict(registry._SCHEMES))

    def colours(rest, device):
        return ImageTextModel(
            Letters(f"letters@{rest}"), lambda pixels: pixels.mean((2, 3)), ImagePreprocessing(4)
        )

    scheme = EncoderScheme("letters@{}".format, lambda rest, _: Letters(f"letters@{rest}"), colours)
    register_encoder("letters", scheme)
    assert text_encoder_id("letters:x:y") == build_text_encoder("letters:x:y").encoder_id
    model = build_image_text_model("letters:x:y")
    assert model.encoder_id == "letters@x:y"
    assert model.encode_image(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).shape == (2, 3)
    with pytest.raises(OVDError, match=r"did you mean letters:NAME_OR_FILE\?"):
        build_text_encoder("leters:x")


@pytest.mark.parametrize(
    "spec, message",
    [
        ("", "unknown encoder ''; write openai-clip:NAME_OR_FILE, open_clip:MODEL:TAG_OR_FILE, "
             "hf:NAME_OR_FOLDER, minilm, mini-teacher or exported:FILE"),
        ("align:base", "unknown encoder 'align:base'; write openai-clip:"),
        ("openclip:ViT-B-32:x", r"did you mean open_clip:MODEL:TAG_OR_FILE\?"),
        ("mini_teacher", r"unknown encoder 'mini_teacher' \(did you mean mini-teacher\?\); write"),
        ("word2vec", "unknown encoder 'word2vec'; write openai-clip:"),
        ("hf", "'hf' is incomplete; write hf:NAME_OR_FOLDER"),
        ("openai-clip:", "'openai-clip:' is incomplete; write openai-clip:NAME_OR_FILE"),
        ("openai-clip", "'openai-clip' is incomplete; write openai-clip:NAME_OR_FILE"),
        ("exported:", "'exported:' is incomplete; write exported:FILE"),
        ("minilm:l6", "nothing may follow 'minilm'; write minilm"),
        ("mini-teacher:/a/b.safetensors",
         "nothing may follow 'mini-teacher'; write exported:/a/b.safetensors"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("function", [text_encoder_id, build_text_encoder, build_image_text_model])
def test_malformed_specs_are_refused_by_all_alike(function, spec, message, monkeypatch):
    names = ("openai-clip", "open_clip", "hf", "minilm", "mini-teacher", "exported")
    own = {name: registry._SCHEMES[name] for name in names}  # without those of other tests
    monkeypatch.setattr(registry, "_SCHEMES", own)
    with pytest.raises(OVDError, match=message):
        function(spec)


def test_an_encoder_of_text_alone_is_no_image_text_model():
    with pytest.raises(OVDError, match=r"'minilm' reads no images; write .* or exported:FILE$"):
        build_image_text_model("minilm")
