"""The vocabulary "everything": LVIS and Objects365, each thing once."""

import hashlib
import re

import pytest
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
from hashing_encoder import HashingEncoder

from ovd_d2.inference.arguments import wanted_vocabulary
from ovd_d2.language import TextEmbeddingBank, Vocabulary, configured_vocabulary
from ovd_d2.language.everything import everything, objects365_names


def test_counts_and_order():
    """LVIS first, by ids; the digest says that nothing of it has moved."""
    found = everything()
    assert len(found) == 1305
    assert [re.sub(r"[_/]", " ", c["name"]).lower() for c in LVIS_CATEGORIES] == list(
        found.names[:1203]
    )
    assert found.names[1203:1206] == ("picture or frame", "storage box", "leather shoes")
    assert found.names[-1] == "curling stone"
    assert found.definitions[0] == LVIS_CATEGORIES[0]["def"] and not found.definitions[-1]
    assert not any(found.is_novel) and found.image_counts == ()
    digest = hashlib.sha256("\n".join(found.names).encode()).hexdigest()
    assert digest[:16] == "ebdd2e0dd78cef02"


def test_nothing_is_there_twice():
    def plain(word):
        return re.sub(r"\(.*?\)|[^a-z0-9]", "", word.lower()).removesuffix("s")

    found = everything()
    lvis = {plain(word) for words in found.synonyms[:1203] for word in words}
    lvis |= {plain(name) for name in found.names[:1203]}
    added = [plain(name) for name in found.names[1203:]]
    assert len(set(added)) == len(added) and not lvis & set(added)


@pytest.mark.parametrize(
    ("published", "its_class"),
    [("Sneakers", "shoe"), ("Moniter/TV", "television set"), ("Glasses", "spectacles"),
     ("Bakset", "basket"), ("Tea pot", "teapot"), ("Head Phone", "earphone"),
     ("Orange/Tangerine", "orange (fruit)"), ("Mouse", "mouse (computer equipment)")],
)  # fmt: skip
def test_what_lvis_has_is_not_added(published, its_class):
    found = everything()
    assert its_class in found.names[:1203]
    assert not {published.lower(), *published.lower().split("/")} & set(found.names[1203:])


def test_objects365_has_its_365_names():
    names = objects365_names()
    assert len(names) == len(set(names)) == 365
    assert names[:3] == ("Person", "Sneakers", "Chair") and names[-1] == "ping-pong ball"
    assert "basket" in names and "Bakset" not in names


def test_how_it_is_asked_for():
    """Alone it is all names; in a list it is a name."""
    found = everything()
    assert Vocabulary.load("everything") == Vocabulary.load(" everything ") == found
    assert configured_vocabulary("everything", []) == found
    assert wanted_vocabulary("everything").names == found.names
    assert Vocabulary.load("everything, cat").names == ("everything", "cat")
    assert wanted_vocabulary(["everything"]).names == ("everything",)
    assert Vocabulary.load("Everything").names == ("Everything",)


def test_imagenet_s_names_may_follow():
    pytest.importorskip("timm")
    more = Vocabulary.load("everything+imagenet21k:5")
    assert len(more) == 1310 and more.names[:1305] == everything().names


def test_a_model_s_training_says_what_is_novel():
    trained = Vocabulary(("sofa", "cabbage"), image_counts=(5, 0))
    found = wanted_vocabulary("everything", trained)
    assert [name for name, novel in zip(found.names, found.is_novel) if not novel] == ["sofa"]


def test_embeddings_are_made_once(tmp_path):
    first, second = HashingEncoder(), HashingEncoder()
    made = TextEmbeddingBank(first, "photo", cache_dir=tmp_path).embed(everything())
    read = TextEmbeddingBank(second, "photo", cache_dir=tmp_path).embed(everything())
    assert sum(map(len, first.seen)) == 1305 and second.seen == []
    assert (made.embeddings == read.embeddings).all() and read.names == everything().names
