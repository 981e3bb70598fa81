"""Rows of class embeddings made of examples and words."""

import math

import pytest
import torch
from hashing_encoder import HashingEncoder

from ovd_d2.language import TextEmbeddingBank, TextEmbeddings, Vocabulary
from ovd_d2.language.example_rows import (
    ExampleEmbedder,
    coco_names,
    example_rows,
    word_directions,
)


def unit(values):
    length = math.sqrt(sum(x * x for x in values))
    return [x / length for x in values]


def plain_rows(means, around, words, s):
    """The formula of the module, number by number."""
    rows = []
    for mean, word in zip(means, words):
        own = unit([a - b for a, b in zip(unit(mean), around)])
        rows.append(unit([(1 - s) * t + s * e for t, e in zip(word, own)]))
    return rows


@pytest.mark.parametrize("s", [0.0, 0.3, 1.0])
def test_rows_are_those_of_the_formula(s):
    means, words = torch.randn(3, 5).double(), torch.randn(3, 5).double()
    around = torch.randn(5).double() * 0.2
    wanted = plain_rows(means.tolist(), around.tolist(), words.tolist(), s)
    torch.testing.assert_close(example_rows(means, around, words, s), torch.tensor(wanted).double())


@pytest.fixture
def bank(tmp_path):
    return TextEmbeddingBank(HashingEncoder(), "a {}", cache_dir=tmp_path / "cache")


def test_words_are_what_names_have_in_common_and_a_share_of_the_own_name(bank):
    trained = Vocabulary.from_names("cat, red mug, dog")
    known = bank.embed(trained).embeddings.double()
    common = torch.tensor(unit(known.mean(dim=0).tolist())).double()
    found = word_directions(["my mug", "Red_mug"], bank, trained, 0.25)
    torch.testing.assert_close(found[0], common)
    torch.testing.assert_close(found[1], 0.75 * common + 0.25 * known[1])


def test_without_a_known_vocabulary_the_names_of_coco_stand_for_it(bank):
    assert len(coco_names()) == 80
    (found,) = word_directions(["cat"], bank, None, 0.25)
    mean = bank.embed(coco_names()).embeddings.double().mean(dim=0)
    torch.testing.assert_close(found, mean / mean.norm())


def test_rows_where_there_are_examples_and_words_elsewhere(bank):
    rows = TextEmbeddings(torch.randn(2, 8), ("mug 7", "cat"), bank.encoder_id)
    vocabulary = Vocabulary(
        ("dog", "cat", "bird", "mug 7"),
        synonyms=(("dog", "hound"), ("cat",), ("bird",), ("mug 7",)),
        definitions=("a pet", "", "", ""),
        is_novel=(False, True, False, True),
    )
    embedder = ExampleEmbedder(bank, rows)
    found = embedder.embed(vocabulary)
    assert found.names == vocabulary.names and found.encoder_id == embedder.encoder_id
    assert torch.equal(found.embeddings[[3, 1]], rows.embeddings)
    assert torch.equal(
        found.embeddings[[0, 2]], bank.embed(Vocabulary.from_names("dog, bird")).embeddings
    )
    only = ExampleEmbedder(bank, rows).embed(Vocabulary.from_names("cat"))
    assert torch.equal(only.embeddings, rows.embeddings[1:])


def test_synonyms_of_the_words_are_used(tmp_path):
    bank = TextEmbeddingBank(HashingEncoder(), "a {}", use_synonyms=True, cache_dir=tmp_path)
    rows = TextEmbeddings(torch.randn(1, 8), ("cat",), bank.encoder_id)
    vocabulary = Vocabulary(("cat", "dog"), synonyms=(("cat",), ("dog", "hound")))
    found = ExampleEmbedder(bank, rows).embed(vocabulary).embeddings[1]
    alone = bank.embed(Vocabulary(("dog",), synonyms=(("dog", "hound"),))).embeddings[0]
    assert torch.equal(found, alone)
    assert not torch.equal(found, bank.embed(Vocabulary.from_names("dog")).embeddings[0])
