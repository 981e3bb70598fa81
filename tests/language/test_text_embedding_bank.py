"""The bank: the published averaging rule, and a cache that is never wrong."""

import logging
import os

import pytest
import torch
from configured_classes import build
from embedding_damages import DAMAGES
from hashing_encoder import HashingEncoder
from hypothesis import given, settings
from hypothesis import strategies as st

from ovd_d2.encoders import EncoderScheme, register_encoder
from ovd_d2.encoders import registry as text_encoders
from ovd_d2.errors import OVDError
from ovd_d2.language import (
    PROMPT_SETS,
    TextEmbeddingBank,
    Vocabulary,
)

ANIMALS = Vocabulary(("cat", "Bald_eagle", "owl"), synonyms=(("cat", "kitty"), (), ("owlet",)))


def plain_class_embeddings(encoder, vocabulary, templates, use_synonyms):
    """The published rule, written out one text at a time."""
    rows = []
    for name, synonyms in zip(vocabulary.names, vocabulary.synonyms):
        words = [name]
        if use_synonyms:
            words += [word for word in synonyms if word != name]
        vectors = []
        for word in words:
            for template in templates:
                word = word.replace("_", " ").lower()
                a = "an" if word[0] in "aeiou" else "a"
                text = template.replace("{article}", a).replace("{}", word)
                vector = encoder.encode([text])[0]
                vectors.append(vector / vector.norm())
        mean = torch.stack(vectors).mean(dim=0)
        rows.append(mean / mean.norm())
    return torch.stack(rows)


@pytest.mark.parametrize("prompts", ["name", "article_photo", "vild63", "imagenet80"])
@pytest.mark.parametrize("use_synonyms", [False, True])
def test_bank_follows_the_published_rule(tmp_path, prompts, use_synonyms):
    encoder = HashingEncoder()
    result = TextEmbeddingBank(encoder, prompts, use_synonyms, tmp_path).embed(ANIMALS)
    expected = plain_class_embeddings(encoder, ANIMALS, PROMPT_SETS[prompts], use_synonyms)
    torch.testing.assert_close(result.embeddings, expected, atol=1e-6, rtol=0)
    assert result.names == ANIMALS.names and result.encoder_id == encoder.encoder_id
    assert result.embeddings.dtype == torch.float32 and len(result) == 3 and result.dim == 8


def test_unnormalised_encoders_do_not_weigh_templates(tmp_path):
    class Loud(HashingEncoder):
        def encode(self, texts):
            lengths = torch.tensor([[float(len(text))] for text in texts])
            return super().encode(texts) * lengths

    quiet = TextEmbeddingBank(HashingEncoder(), "vild63", cache_dir=tmp_path / "q").embed(ANIMALS)
    loud = TextEmbeddingBank(Loud(), "vild63", cache_dir=tmp_path / "l").embed(ANIMALS)
    torch.testing.assert_close(quiet.embeddings, loud.embeddings, atol=1e-6, rtol=0)


def test_more_texts_than_one_chunk(tmp_path):
    vocabulary = Vocabulary.from_names([f"thing {i}" for i in range(30)])
    encoder = HashingEncoder()
    result = TextEmbeddingBank(encoder, "imagenet80", cache_dir=tmp_path).embed(vocabulary)
    assert len(encoder.seen) > 1
    expected = plain_class_embeddings(encoder, vocabulary, PROMPT_SETS["imagenet80"], False)
    torch.testing.assert_close(result.embeddings, expected, atol=1e-6, rtol=0)


def test_second_time_comes_from_the_cache_bit_by_bit(tmp_path):
    first = TextEmbeddingBank(HashingEncoder(), "vild63", cache_dir=tmp_path).embed(ANIMALS)
    encoder = HashingEncoder()
    second = TextEmbeddingBank(encoder, "vild63", cache_dir=tmp_path).embed(ANIMALS)
    assert not encoder.seen and torch.equal(first.embeddings, second.embeddings)


def test_cache_is_asked_before_an_encoder_is_loaded(tmp_path, monkeypatch):
    built = []

    def build(rest, device):
        built.append(rest)
        return HashingEncoder(encoder_id=f"hashing@{rest}")

    monkeypatch.setattr(text_encoders, "_SCHEMES", dict(text_encoders._SCHEMES))
    register_encoder("hashing", EncoderScheme(lambda rest: f"hashing@{rest}", build))
    for _ in range(2):
        TextEmbeddingBank("hashing:a", cache_dir=tmp_path).embed(ANIMALS)
    assert built == ["a"]
    TextEmbeddingBank("hashing:b", cache_dir=tmp_path).embed(ANIMALS)
    assert built == ["a", "b"]


def test_everything_that_decides_the_result_is_in_the_key(tmp_path):
    def computes(encoder=None, prompts="photo", synonyms=False, vocabulary=ANIMALS):
        encoder = encoder or HashingEncoder()
        TextEmbeddingBank(encoder, prompts, synonyms, tmp_path).embed(vocabulary)
        return bool(encoder.seen)

    assert computes() and not computes()
    assert computes(encoder=HashingEncoder(encoder_id="hashing@111111111111"))
    assert computes(prompts="name")
    assert computes(synonyms=True)
    assert computes(vocabulary=Vocabulary(ANIMALS.names[::-1]))
    assert computes(vocabulary=Vocabulary(ANIMALS.names[:2]))
    # Facts about the classes that no text shows do not matter.
    assert not computes(vocabulary=Vocabulary(ANIMALS.names, is_novel=(True, True, False)))


@pytest.fixture
def cached(tmp_path):
    """A cache folder, its only tensor file, and what belongs in it."""
    expected = TextEmbeddingBank(HashingEncoder(), cache_dir=tmp_path).embed(ANIMALS)
    (path,) = tmp_path.glob("*.safetensors")
    return tmp_path, path, expected.embeddings


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_stale_or_damaged_cache_is_named_and_built_again(cached, caplog, damage):
    folder, path, expected = cached
    damage(path)
    encoder = HashingEncoder()
    with caplog.at_level(logging.WARNING):
        result = TextEmbeddingBank(encoder, cache_dir=folder).embed(ANIMALS)
    assert encoder.seen and path.name in caplog.text
    assert torch.equal(result.embeddings, expected)
    again = HashingEncoder()
    TextEmbeddingBank(again, cache_dir=folder).embed(ANIMALS)
    assert not again.seen  # repaired


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_in_the_cache_are_survived(tmp_path_factory, content, in_manifest):
    folder = tmp_path_factory.mktemp("cache")
    expected = TextEmbeddingBank(HashingEncoder(), cache_dir=folder).embed(ANIMALS)
    (path,) = folder.glob("*.safetensors")
    (path.with_name(path.name + ".json") if in_manifest else path).write_bytes(content)
    result = TextEmbeddingBank(HashingEncoder(), cache_dir=folder).embed(ANIMALS)
    assert torch.equal(result.embeddings, expected.embeddings)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.text("abcXYZ_ /.é犬", min_size=1, max_size=8).filter(lambda s: s.strip(" _/.")),
        min_size=1,
        max_size=5,
        unique=True,
    )
)
def test_any_names_round_trip_through_the_cache(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("cache")
    vocabulary, encoder = Vocabulary(tuple(names)), HashingEncoder()
    first = TextEmbeddingBank(encoder, "photo", cache_dir=folder).embed(vocabulary)
    second = TextEmbeddingBank(encoder, "photo", cache_dir=folder).embed(vocabulary)
    assert len(encoder.seen) == 1
    assert first.names == second.names == tuple(names)
    assert torch.equal(first.embeddings, second.embeddings)


def test_unusable_cache_folder_only_costs_time(tmp_path, caplog):
    (tmp_path / "file").write_text("not a folder")
    with caplog.at_level(logging.WARNING):
        bank = TextEmbeddingBank(HashingEncoder(), cache_dir=tmp_path / "file" / "cache")
        assert len(bank.embed(ANIMALS)) == 3
    assert "could not be cached" in caplog.text


def test_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, caplog):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with caplog.at_level(logging.WARNING):
        assert len(TextEmbeddingBank(HashingEncoder(), cache_dir=tmp_path).embed(ANIMALS)) == 3
    assert "No space left" in caplog.text
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_cache_dir_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("OVD_D2_CACHE", str(tmp_path / "here"))
    TextEmbeddingBank(HashingEncoder()).embed(ANIMALS)
    assert len(list((tmp_path / "here").glob("*.safetensors"))) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_encoder_is_refused_and_nothing_cached(tmp_path, value):
    class Broken(HashingEncoder):
        def encode(self, texts):
            return super().encode(texts) + value

    with pytest.raises(OVDError, match="hashing@000000000000 gave"):
        TextEmbeddingBank(Broken(), cache_dir=tmp_path).embed(ANIMALS)
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.fixture
def hashing(monkeypatch, tmp_path):
    monkeypatch.setattr(text_encoders, "_SCHEMES", dict(text_encoders._SCHEMES))
    scheme = EncoderScheme(lambda rest: "hashing@000000000000", lambda *_: HashingEncoder())
    register_encoder("hashing", scheme)
    monkeypatch.setenv("OVD_D2_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("hashing")
def test_empty_vocabulary_means_the_first_training_set():
    vocabulary, embeddings = build()
    assert vocabulary == Vocabulary.from_metadata("lvis_v1_train")
    assert embeddings.embeddings.shape == (1203, 8) and embeddings.names == vocabulary.names


@pytest.mark.usefixtures("hashing")
def test_vocabulary_and_prompts_are_used():
    vocabulary, embeddings = build(vocabulary="cat, owl", prompts="vild63", train_datasets=())
    expected = plain_class_embeddings(HashingEncoder(), vocabulary, PROMPT_SETS["vild63"], False)
    torch.testing.assert_close(embeddings.embeddings, expected, atol=1e-6, rtol=0)
