"""Vocabularies extended by names of ImageNet-21K."""

import pytest

from ovd_d2.errors import OVDError
from ovd_d2.language import Vocabulary
from ovd_d2.language.imagenet_names import extend_with_imagenet21k

LVIS = "dataset:lvis_v1_val_ovd"


def test_five_times_lvis():
    lvis = Vocabulary.load(LVIS)
    vocabulary = Vocabulary.load(f"{LVIS}+imagenet21k:4812")
    assert len(vocabulary) == 5 * 1203
    assert vocabulary.names[:1203] == lvis.names
    assert vocabulary.is_novel[:1203] == lvis.is_novel and not any(vocabulary.is_novel[1203:])
    assert vocabulary.image_counts[:1203] == lvis.image_counts
    assert not any(vocabulary.image_counts[1203:])
    assert all(vocabulary.definitions[1203:])


def test_no_new_name_or_synonym_is_one_of_lvis():
    vocabulary = Vocabulary.load(f"{LVIS}+imagenet21k:4812")

    def words(rows):
        return {w.lower().replace("_", " ").replace("-", " ") for words in rows for w in words}

    assert not words(vocabulary.synonyms[:1203]) & words(vocabulary.synonyms[1203:])
    new = [w.lower() for words in vocabulary.synonyms[1203:] for w in set(words)]
    assert len(new) > 4812


def test_a_smaller_choice_is_the_beginning_of_a_larger_one():
    few, many = (Vocabulary.load(f"cat, dog+imagenet21k:{n}") for n in (10, 200))
    assert few.names == many.names[:12]
    assert few.names[:2] == ("cat", "dog") and few.image_counts == ()


def test_the_choice_is_the_same_on_every_machine():
    assert Vocabulary.load("cat+imagenet21k:3").names[1:] == (
        "silver lime", "Seeing Eye dog", "fore-topsail",
    )  # fmt: skip


@pytest.mark.parametrize("count", ["0", "-3", "many", "", "1.5", "9999999"])
def test_bad_counts_are_refused(count):
    with pytest.raises(OVDError, match="imagenet21k:"):
        Vocabulary.load(f"cat+imagenet21k:{count}")


def test_more_than_there_are():
    with pytest.raises(OVDError, match="more names than ImageNet-21K has"):
        extend_with_imagenet21k(Vocabulary(("cat",)), 30000)
