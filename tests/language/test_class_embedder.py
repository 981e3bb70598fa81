"""Names and embedders in every form that a user has them in."""

import pytest
import torch
from hashing_encoder import HashingEncoder
from omegaconf import ListConfig

from ovd_d2.encoders import EncoderScheme
from ovd_d2.encoders.registry import _SCHEMES
from ovd_d2.errors import OVDError
from ovd_d2.language import (
    LATER,
    EmbeddingFile,
    RandomEmbeddings,
    TextEmbeddingBank,
    Vocabulary,
    as_class_embedder,
    as_vocabulary,
    configured_class_embedder,
    configured_vocabulary,
)

NAMES = ("cat", "red mug")
VOCABULARY = Vocabulary(names=NAMES)


@pytest.fixture
def bank(tmp_path):
    return TextEmbeddingBank(HashingEncoder(), "a {}", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    "names", ["cat, red mug", ["cat", "red mug"], NAMES, VOCABULARY, ListConfig(NAMES)], ids=type
)
def test_names_in_every_form(names):
    assert as_vocabulary(names) == VOCABULARY


def test_names_of_a_file(tmp_path):
    (tmp_path / "names.txt").write_text("cat\nred mug\n")
    assert as_vocabulary(tmp_path / "names.txt") == VOCABULARY


def test_embedders_in_every_form(bank, tmp_path, monkeypatch):
    ready = bank.embed(VOCABULARY)
    ready.save(tmp_path / "ready.safetensors")
    assert as_class_embedder(bank) is bank
    assert as_class_embedder(ready).embed(VOCABULARY) is ready
    for path in (tmp_path / "ready.safetensors", str(tmp_path / "ready.safetensors")):
        embedder = as_class_embedder(path)
        assert torch.equal(embedder.embed(VOCABULARY).embeddings, ready.embeddings)
        assert embedder.encoder_id == ready.encoder_id == bank.encoder_id
    monkeypatch.setenv("OVD_D2_CACHE", str(tmp_path / "more"))
    scheme = EncoderScheme(lambda rest: "hashing@000000000000", lambda *_: HashingEncoder(),
                               rest=None)  # fmt: skip
    monkeypatch.setitem(_SCHEMES, "hashing", scheme)
    by_name = as_class_embedder("hashing").embed(VOCABULARY)
    photo = TextEmbeddingBank(HashingEncoder(), cache_dir=tmp_path / "more")
    assert torch.equal(by_name.embeddings, photo.embed(VOCABULARY).embeddings)


def test_ready_embeddings_are_of_their_names_alone(bank):
    given = as_class_embedder(bank.embed(VOCABULARY))
    with pytest.raises(OVDError, match="of 2 names that differ from the vocabulary's 2"):
        given.embed(Vocabulary(NAMES[::-1]))


def test_random_embeddings_are_of_the_name_alone():
    embedder = RandomEmbeddings(16)
    both, one = embedder.embed(VOCABULARY), embedder.embed(Vocabulary(NAMES[1:]))
    assert torch.equal(both.embeddings[1:], one.embeddings)
    assert both.embeddings.shape == (2, 16) and both.encoder_id == "random:16"
    assert abs(float(both.embeddings[0] @ both.embeddings[1])) < 0.9


def test_every_embedder_keeps_the_protocol(bank):
    for embedder in (bank, EmbeddingFile("x.npy"), RandomEmbeddings(2)):
        assert hasattr(type(embedder), "encoder_id") and callable(embedder.embed)


def test_nothing_is_looked_up_before_it_is_asked_for():
    """A model that is built without classes needs no encoder: not even its id."""
    unknown = TextEmbeddingBank("nonsense", "name")
    assert as_class_embedder(unknown) is unknown
    assert as_class_embedder("hf:/nowhere").embed
    with pytest.raises(OVDError, match="unknown encoder 'nonsense'"):
        unknown.embed(VOCABULARY)


def test_what_a_config_names(tmp_path):
    assert configured_vocabulary(LATER, ("nowhere",)) is None
    with pytest.raises(OVDError, match=r"MODEL\.OPEN_VOCAB\.VOCABULARY"):
        configured_vocabulary("", ())
    found = configured_vocabulary("cat, red mug", (), ["red mug"])
    assert found.names == NAMES and found.is_novel == (False, True)
    file = configured_class_embedder("x.npy", "none", "none", False, "cuda")
    assert file == EmbeddingFile("x.npy")
    bank = configured_class_embedder("", "minilm", "name", True, "cuda")
    assert isinstance(bank, TextEmbeddingBank) and bank.use_synonyms and len(bank.templates) == 1


@pytest.mark.parametrize(
    ("vocabulary", "words"),
    [
        (None, "vocabulary is None"),
        (3, "vocabulary is 3"),
        (b"cat", "vocabulary is b'cat'"),
        ({"cat": None}, "vocabulary is .*give names in a string"),
        ([], "at least one"),
        (["cat", 3], "must be strings"),
    ],
)
def test_names_that_can_not_be_meant(vocabulary, words):
    with pytest.raises(OVDError, match=words):
        as_vocabulary(vocabulary)


@pytest.mark.parametrize(
    ("embedder", "words"),
    [
        (None, "class_embedder is a NoneType"),
        (3, "class_embedder is a int"),
        ("nonsense", "unknown encoder 'nonsense'"),
        ("/nowhere/x.npy", "/nowhere/x.npy"),
    ],
)
def test_embedders_that_can_not_be_meant(embedder, words):
    with pytest.raises(OVDError, match=words):
        as_class_embedder(embedder).embed(VOCABULARY)
