import logging
import shutil
from urllib.error import URLError

import pytest
import tiny_clip_models as tiny_models
import torch
from safetensors.torch import save_file
from torch.nn.functional import normalize

from ovd_d2.encoders import TextEncoder, build_text_encoder, text_encoder_id
from ovd_d2.encoders.openai_clip import import_clip, load_openai_clip
from ovd_d2.errors import OVDError

TEXTS = ["a photo of a cat", "dog", "a very long name of a class with many words", "", "dog"]


@pytest.fixture(scope="module")
def model():
    return tiny_models.openai_clip_model()


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "tiny.pt"
    torch.save(model.state_dict(), path)
    return path


@torch.no_grad()
def plain(model, texts, **options):
    tokens = import_clip().tokenize(texts, **options)
    return normalize(model.encode_text(tokens), dim=1)


def test_file_gives_what_the_model_gives(model, weights):
    encoder = build_text_encoder(f"openai-clip:{weights}")
    assert isinstance(encoder, TextEncoder)
    features = encoder.encode(TEXTS)
    assert encoder.dim == 32 and features.shape == (5, 32) and features.dtype == torch.float32
    torch.testing.assert_close(features, plain(model, TEXTS), atol=2e-6, rtol=0)
    assert not features.requires_grad and not features.is_inference()
    assert encoder.encode([]).shape == (0, 32)


def test_many_texts_come_back_in_order(model, weights):
    texts = [("word " * (i % 7)) + str(i) for i in range(300)]  # more than one batch
    features = build_text_encoder(f"openai-clip:{weights}").encode(texts)
    torch.testing.assert_close(features, plain(model, texts), atol=2e-6, rtol=0)


def test_weights_are_not_rounded_and_random_state_stays(model, weights):
    before = torch.random.get_rng_state()
    loaded = build_text_encoder(f"openai-clip:{weights}").model
    assert torch.equal(before, torch.random.get_rng_state())
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


@pytest.mark.filterwarnings("ignore")  # tracing warns at length
def test_all_file_formats_are_read(model, weights, tmp_path):
    tokens = import_clip().tokenize(["cat"])
    archive, nested = tmp_path / "archive.pt", tmp_path / "nested.pt"
    torch.jit.trace(model, (torch.zeros(1, 3, 32, 32), tokens)).save(archive)
    save_file(model.state_dict(), tmp_path / "tiny.safetensors")
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    sizes = {"input_resolution": torch.tensor(32), "vocab_size": torch.tensor(49408)}
    torch.save({"epoch": 1, "state_dict": {**state, **sizes}}, nested)
    expected = plain(model, TEXTS)
    for path in (archive, nested, tmp_path / "tiny.safetensors"):
        features = build_text_encoder(f"openai-clip:{path}").encode(TEXTS)
        torch.testing.assert_close(features, expected, atol=2e-6, rtol=0)


def test_id_follows_the_weights_not_the_path(model, weights, tmp_path):
    copy = tmp_path / "copy.pt"
    shutil.copy(weights, copy)
    spec = f"openai-clip:{copy}"
    assert text_encoder_id(spec) == text_encoder_id(f"openai-clip:{weights}")
    assert text_encoder_id(spec) == build_text_encoder(spec).encoder_id
    before = text_encoder_id(spec)
    torch.save(tiny_models.openai_clip_model(seed=1).state_dict(), copy)
    assert text_encoder_id(spec) != before


def test_published_files_have_the_name_of_their_model(weights, monkeypatch):
    clip = import_clip().clip
    official = text_encoder_id("openai-clip:ViT-B/32")
    assert official == "openai-clip:ViT-B/32@40d365715913"
    digest = text_encoder_id(f"openai-clip:{weights}").partition("@")[2]
    full = f"{digest}{'0' * 52}"
    monkeypatch.setattr("ovd_d2.encoders.openai_clip.file_digest", lambda path: full)
    monkeypatch.setattr(clip, "_MODELS", {"tiny": f"https://host/models/{full}/tiny.pt"})
    assert text_encoder_id(f"openai-clip:{weights}") == f"openai-clip:tiny@{digest}"
    assert text_encoder_id("openai-clip:tiny") == f"openai-clip:tiny@{digest}"


def test_long_texts_are_cut_and_said_so(model, weights, caplog):
    long = "cat " * 100
    encoder = build_text_encoder(f"openai-clip:{weights}")
    with caplog.at_level(logging.WARNING):
        features = encoder.encode(["dog", long])
    assert "longer than 77 tokens" in caplog.text
    torch.testing.assert_close(
        features, plain(model, ["dog", long], truncate=True), atol=2e-6, rtol=0
    )


def test_no_network_names_the_way_out(monkeypatch):
    def load(name, device):
        raise URLError("no route to host")

    monkeypatch.setattr(import_clip(), "load", load)
    with pytest.raises(OVDError, match=r"'RN50' could not be downloaded.*openai-clip:/path/to"):
        build_text_encoder("openai-clip:RN50")


def test_named_model_comes_from_clip_load(model, monkeypatch):
    monkeypatch.setattr(import_clip(), "load", lambda name, device: (model, None))
    encoder = build_text_encoder("openai-clip:RN50")
    assert encoder.encoder_id == "openai-clip:RN50@afeb0e10f9e5"
    torch.testing.assert_close(encoder.encode(TEXTS), plain(model, TEXTS), atol=2e-6, rtol=0)


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def test_pickled_code_does_not_run(tmp_path):
    path, marker = tmp_path / "evil.pt", tmp_path / "marker"
    torch.save({"state_dict": Payload(marker)}, path)
    with pytest.raises(OVDError, match=r"cannot read CLIP weights from .*evil\.pt"):
        build_text_encoder(f"openai-clip:{path}")
    assert not marker.exists()


def test_wrong_files_are_refused_by_name(model, tmp_path):
    (tmp_path / "damaged.pt").write_bytes(b"PK\x03\x04 not really")
    (tmp_path / "damaged.safetensors").write_bytes(b"\xff" * 64)
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pt")
    state = dict(model.state_dict())
    del state["transformer.resblocks.1.ln_2.bias"]
    torch.save(state, tmp_path / "partial.pt")
    state = tiny_models.openai_clip_model(vocab_size=1000).state_dict()
    torch.save(state, tmp_path / "tokens.pt")
    for name, message in {
        "damaged.pt": "cannot read CLIP weights",
        "damaged.safetensors": "cannot read CLIP weights",
        "list.pt": "not a state dict",
        "other.pt": "does not hold the weights of an OpenAI CLIP",
        "partial.pt": "does not hold the weights of an OpenAI CLIP",
        "tokens.pt": "1000 tokens",
    }.items():
        with pytest.raises(OVDError, match=message) as caught:
            load_openai_clip(str(tmp_path / name))
        assert name in str(caught.value)


@pytest.mark.parametrize("spec", ["openai-clip:ViT-B/64", "openai-clip:/nowhere/a.pt"])
def test_unknown_model_is_refused_with_the_known_ones(spec):
    for function in (build_text_encoder, text_encoder_id):
        with pytest.raises(OVDError, match=r"neither a file nor .*ViT-B/32"):
            function(spec)


def test_clipboard_package_is_recognised(monkeypatch):
    import sys
    from types import ModuleType

    monkeypatch.setitem(sys.modules, "clip", ModuleType("clip"))
    with pytest.raises(OVDError, match=r"not OpenAI's; run: pip uninstall clip"):
        import_clip()
    monkeypatch.setitem(sys.modules, "clip", None)
    with pytest.raises(OVDError, match=r"pip install 'openai-clip==1\.0\.1'"):
        import_clip()
