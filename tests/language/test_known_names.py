"""Typed names get what the training vocabulary knows of them."""

from hypothesis import given
from hypothesis import strategies as st

from ovd_d2.language import Vocabulary
from ovd_d2.language.known_names import with_known_names

TRAINED = Vocabulary(
    names=("sports car", "cat", "aerosol_can", "zebra"),
    synonyms=(("sports car", "roadster"), ("cat", "house cat"), ("spray_can",), ("zebra",)),
    definitions=("a fast car", "an animal", "", "a striped animal"),
    is_novel=(False, True, False, False),
    image_counts=(3, 0, 1, 0),
)


def known(names):
    return with_known_names(Vocabulary.from_names(names), TRAINED)


def test_names_synonyms_case_and_underscores_are_known():
    found = known(["Sports Car", "House Cat", "aerosol can", "unicorn", "zebra"])
    assert found.names == ("Sports Car", "House Cat", "aerosol can", "unicorn", "zebra")
    assert found.synonyms == (
        ("sports car", "roadster"), ("cat", "house cat"), ("spray_can",), ("unicorn",), ("zebra",)
    )  # fmt: skip
    assert found.definitions[:2] == ("a fast car", "an animal")
    # zebra was among the names, but no training image showed one
    assert found.is_novel == (False, True, False, True, True)


def test_a_name_goes_before_another_class_s_synonym():
    trained = Vocabulary(("car", "cat"), (("car", "Cat"), ("cat", "kitty")))
    assert with_known_names(Vocabulary.from_names("cat"), trained).synonyms == (("cat", "kitty"),)


def test_two_words_for_one_class_stay_apart():
    found = known(["roadster", "sports car", "cat"])
    assert found.synonyms == (("roadster",), ("sports car",), ("cat", "house cat"))
    assert found.is_novel == (False, False, True)


def test_what_a_vocabulary_says_itself_stays():
    own = Vocabulary(
        ("sports car", "cat", "zebra"),
        (("sports car", "coupe"), ("cat",), ("zebra",)),
        ("", "my own", ""),
        (True, False, False),
        (9, 9, 9),
    )
    found = with_known_names(own, TRAINED)
    assert found.synonyms == own.synonyms
    assert found.definitions == ("", "my own", "a striped animal")
    assert found.is_novel == own.is_novel and found.image_counts == own.image_counts


@given(st.lists(st.sampled_from([*TRAINED.names, "x", "roadster"]), min_size=1, unique=True))
def test_all_names_of_the_training_are_those_of_the_training(names):
    found = known(names)
    assert found.names == tuple(names)
    for name, words, novel in zip(found.names, found.synonyms, found.is_novel):
        if name in TRAINED.names and not {"roadster", "sports car"} <= set(names):
            row = TRAINED.names.index(name)
            assert words == TRAINED.synonyms[row]
            assert novel == (TRAINED.is_novel[row] or TRAINED.image_counts[row] == 0)
