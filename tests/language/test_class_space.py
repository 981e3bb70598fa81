"""Names and embeddings in every form that a user has them in."""

import pytest
import torch
from hashing_encoder import HashingEncoder

from ovd_d2.encoders import EncoderScheme
from ovd_d2.encoders.registry import _SCHEMES
from ovd_d2.errors import OVDError
from ovd_d2.language import TextEmbeddingBank, Vocabulary, class_space

NAMES = ("cat", "red mug")


@pytest.fixture
def bank(tmp_path):
    return TextEmbeddingBank(HashingEncoder(), "a {}", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    "names", ["cat, red mug", ["cat", "red mug"], NAMES, Vocabulary(names=NAMES)], ids=type
)
def test_names_in_every_form(bank, names):
    vocabulary, embeddings = class_space(names, bank)
    assert vocabulary == Vocabulary(names=NAMES)
    assert embeddings.names == NAMES
    torch.testing.assert_close(embeddings.embeddings, bank.embed(vocabulary).embeddings)


def test_names_of_an_omegaconf_list(bank):
    from omegaconf import ListConfig

    assert class_space(ListConfig(["cat", "red mug"]), bank)[0].names == NAMES


def test_embeddings_in_every_form(bank, tmp_path, monkeypatch):
    ready = bank.embed(Vocabulary(names=NAMES))
    ready.save(tmp_path / "ready.safetensors")
    assert class_space(NAMES, ready)[1] is ready
    for path in (tmp_path / "ready.safetensors", str(tmp_path / "ready.safetensors")):
        assert torch.equal(class_space(NAMES, path)[1].embeddings, ready.embeddings)
    monkeypatch.setenv("OVD_D2_CACHE", str(tmp_path / "more"))
    scheme = EncoderScheme(lambda rest: "hashing@000000000000", lambda *_: HashingEncoder(),
                               rest=None)  # fmt: skip
    monkeypatch.setitem(_SCHEMES, "hashing", scheme)
    by_name = class_space(NAMES, "hashing")[1]
    photo = TextEmbeddingBank(HashingEncoder(), cache_dir=tmp_path / "more")
    assert torch.equal(by_name.embeddings, photo.embed(Vocabulary(names=NAMES)).embeddings)


@pytest.mark.parametrize(
    ("vocabulary", "embeddings", "words"),
    [
        (None, "minilm", "vocabulary is None"),
        (3, "minilm", "vocabulary is 3"),
        ([], "minilm", "at least one"),
        (["cat", 3], "minilm", "must be strings"),
        ("cat", None, "text_embeddings is a NoneType"),
        ("cat", "nonsense", "unknown encoder 'nonsense'"),
        ("cat", "/nowhere/x.npy", "/nowhere/x.npy"),
    ],
)
def test_what_can_not_be_meant_is_named(vocabulary, embeddings, words):
    with pytest.raises(OVDError, match=words):
        class_space(vocabulary, embeddings)
