"""Concepts, their definitions and their file."""

import json
import math
import sys
import time
from collections import Counter
from types import ModuleType, SimpleNamespace

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ovd_d2.errors import OVDError
from ovd_d2.language import ConceptDictionary
from ovd_d2.language.concept_dictionary import FORMAT

FEW = settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NAMES = st.text("aAbÄ_/ .-(\u0130ß\u200b", min_size=1, max_size=6)


def file_of(tmp_path, concepts, **changes):
    path = tmp_path / "concepts.json"
    content = {"format": FORMAT, "version": 1, "concepts": concepts, **changes}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def made(make):
    """What ``make()`` gives, and the sentence that refuses it."""
    try:
        return make(), ""
    except OVDError as error:
        return None, str(error)


def numbered(count):
    return ConceptDictionary({f"thing {n}": "" for n in range(count)})


def test_names_are_cleaned_and_the_first_definition_counts():
    concepts = ConceptDictionary(
        {"Aerosol_can": "", "cat": " a small\n feline. ", "aerosol can": "a spray", "CAT": "no"}
    )
    assert concepts.names == ("aerosol can", "cat") and len(concepts) == 2
    assert concepts.definition("AEROSOL  can.") == "a spray"
    assert concepts.definition("Cat") == "a small feline"
    assert concepts.definition("dog") == concepts.definition("...") == concepts.definition("") == ""
    assert "Cat." in concepts and "dog" not in concepts and "" not in concepts and 3 not in concepts


def test_text_is_name_and_definition_or_the_name_alone():
    concepts = ConceptDictionary({"Polar_bear": "a white bear, of the Arctic.", "owl": ""})
    assert concepts.text("polar_bear") == "polar bear, a white bear, of the Arctic"
    assert concepts.text("Owl") == "owl"
    assert concepts.text("Traffic light/signal.") == "traffic light or signal"
    assert concepts.text("Emu", "a tall bird. ") == "emu, a tall bird"
    assert concepts.text("polar bear", "") == "polar bear"  # asked for without
    with pytest.raises(OVDError, match="no letters left"):
        concepts.text(" . ")


def test_it_does_not_change_with_the_mapping_it_was_made_of():
    given = {"cat": "a pet"}
    concepts = ConceptDictionary(given)
    given["dog"] = given["cat"] = "other"
    assert concepts.names == ("cat",) and concepts.definition("cat") == "a pet"
    with pytest.raises(AttributeError):
        concepts.names = ("dog",)


@pytest.mark.parametrize(
    "definitions, says",
    [
        ([("cat", "")], "mapping"),
        ({"cat": None}, "definition of 'cat' must be a text, not None"),
        ({3: "three"}, "name must be a text, not 3"),
        ({"_ .": "nothing"}, "no letters left"),
        ({"a\ud800": ""}, "half a surrogate"),
        ({"a": "\udfff"}, "half a surrogate"),
        ({"a\0b": ""}, "control character"),
    ],
)
def test_wrong_concepts_are_refused(definitions, says):
    with pytest.raises(OVDError, match=says):
        ConceptDictionary(definitions)


def test_equal_by_names_definitions_and_order():
    one = ConceptDictionary({"cat": "a pet", "dog": ""})
    assert one == ConceptDictionary({"Cat": "a pet.", "dog": ""})
    assert hash(one) == hash(ConceptDictionary({"Cat": "a pet.", "dog": ""}))
    assert one != ConceptDictionary({"dog": "", "cat": "a pet"})
    assert one != ConceptDictionary({"cat": "", "dog": ""})
    assert one != "cat"


# Drawing


def test_a_sample_is_distinct_excludes_and_repeats_with_its_generator():
    concepts = numbered(1000)
    exclude = ["Thing_3", "thing 7.", "no concept", "..."]

    def drawn(seed):
        return concepts.sample(200, exclude=exclude, generator=torch.Generator().manual_seed(seed))

    assert drawn(0) == drawn(0) != drawn(1)
    for seed in range(20):
        sample = drawn(seed)
        assert len(sample) == len(set(sample)) == 200
        assert set(sample) <= set(concepts.names) - {"thing 3", "thing 7"}


def test_torchs_own_generator_is_the_default():
    concepts = numbered(50)
    torch.manual_seed(5)
    first = concepts.sample(3)
    torch.manual_seed(5)
    assert first == concepts.sample(3)


@pytest.mark.parametrize("count, excluded", [(2, 0), (2, 3), (4, 2), (3, 0), (1, 6)])
def test_every_name_is_drawn_equally_often(count, excluded):
    """Of 8 names, in either of the two ways of drawing."""
    concepts, generator = numbered(8), torch.Generator().manual_seed(0)
    exclude = concepts.names[:excluded]
    tally = Counter()
    for _ in range(4000):
        sample = concepts.sample(count, exclude=exclude, generator=generator)
        assert len(set(sample)) == count
        tally.update(sample)
    share = 4000 * count / (8 - excluded)
    assert set(tally) == set(concepts.names[excluded:])
    assert all(abs(seen - share) < 5 * math.sqrt(share) for seen in tally.values())


def test_fewer_if_there_are_not_enough():
    concepts = numbered(5)
    assert sorted(concepts.sample(100)) == sorted(concepts.names)
    assert concepts.sample(9, exclude=concepts.names) == []
    assert concepts.sample(2, exclude=concepts.names[:4]) == ["thing 4"]
    assert concepts.sample(0) == [] == ConceptDictionary({}).sample(3)
    with pytest.raises(OVDError, match="-1"):
        concepts.sample(-1)


def test_synonyms_of_an_excluded_name_are_no_negatives():
    concepts = ConceptDictionary(
        {"aerosol can": "a spray", "spray can": "a spray", "cat": "", "dog": "", "owl": "a bird"}
    )
    sample = concepts.sample(9, exclude=["Spray_can", "cat"])
    assert sorted(sample) == ["dog", "owl"]  # no definition is no common definition


def test_drawing_does_not_take_longer_from_a_large_dictionary():
    small, large = numbered(1000), numbered(200_000)

    def seconds(concepts):
        best = math.inf
        for _ in range(20):
            start = time.perf_counter()
            concepts.sample(150, exclude=concepts.names[:20])
            best = min(best, time.perf_counter() - start)
        return best

    assert seconds(large) < 5 * seconds(small)  # a list of all would be 200 times


@FEW
@given(st.integers(0, 12), st.integers(0, 14), st.sets(st.integers(0, 13)), st.integers(0, 9))
def test_any_sample(total, count, excluded, seed):
    concepts = numbered(total)
    exclude = [f"Thing_{n}" for n in excluded]
    sample = concepts.sample(count, exclude=exclude, generator=torch.Generator().manual_seed(seed))
    free = set(concepts.names) - {f"thing {n}" for n in excluded}
    assert len(sample) == len(set(sample)) == min(count, len(free))
    assert set(sample) <= free


# Where concepts come from


def test_lvis_has_all_names_and_synonyms_with_their_definitions():
    lvis = ConceptDictionary.load("lvis")
    assert len(lvis) == 1826  # 1203 names and their synonyms
    assert lvis.names[:2] == ("aerosol can", "air conditioner")
    assert lvis.definition("aerosol_can") == lvis.definition("spray can")
    assert lvis.text("spray_can").startswith("spray can, a dispenser that holds")
    assert all(lvis.definition(name) for name in lvis.names)
    assert not any(lvis.definition(name).endswith(".") for name in lvis.names)
    taken = {name for name in lvis.names if lvis.definition(name) == lvis.definition("spray can")}
    assert taken == {"aerosol can", "spray can"}
    assert not taken & set(lvis.sample(2000, exclude=["spray can"]))


@pytest.fixture(scope="module")
def imagenet21k():
    return ConceptDictionary.load("imagenet21k")


def test_imagenet21k_comes_with_timm(imagenet21k):
    concepts = imagenet21k
    assert len(concepts) > 30_000
    assert concepts.definition("polar bear") == "white bear of Arctic regions"
    assert concepts.definition("Ursus Maritimus") == "white bear of Arctic regions"


USUAL = {
    "chair": "a seat for one person", "ball": "round object that is hit", "bed": "a piece of furn",
    "orange": "round yellow to orange fruit", "apple": "fruit with red", "lemon": "yellow oval",
    "drill": "a tool with a sharp point", "cup": "a small open container", "dog": "a member of the",
    "bat": "nocturnal mouselike mammal", "table": "a piece of furniture having a smooth",
    "horse": "solid-hoofed", "car": "a motor vehicle", "glass": "a container for holding liquids",
    "bottle": "a glass or plastic vessel", "bowl": "a dish", "box": "a (usually rectangular)",
    "book": "a number of sheets", "bow": "a weapon", "bar": "a counter", "bolt": "a screw",
    "bridge": "a structure that allows", "case": "a portable container", "door": "a swinging or",
    "duck": "small wild or domesticated", "fan": "a device for creating", "tree": "a tall peren",
    "hammer": "a hand tool", "house": "a dwelling", "iron": "home appliance", "key": "metal device",
    "knife": "edge tool", "lock": "a fastener fitted", "window": "a framework", "pitcher": "an op",
    "seal": "any of numerous marine", "star": "any celestial", "clasp": "a fastener",
}  # fmt: skip


def test_imagenet21k_gives_a_word_its_usual_meaning(imagenet21k):
    wrong = {w: d for w in USUAL if not (d := imagenet21k.definition(w)).startswith(USUAL[w])}
    assert not wrong


def test_classes_of_a_registered_data_set():
    name = "concepts_test"
    DatasetCatalog.register(name, list)
    try:
        MetadataCatalog.get(name).set(
            thing_classes=["Spray_can", "owl"],
            synonyms=[["Spray_can", "aerosol"], ["owl"]],
            definitions=["a spray.", ""],
        )
        concepts = ConceptDictionary.load(f"dataset:{name}")
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert concepts == ConceptDictionary({"spray can": "a spray", "owl": "", "aerosol": "a spray"})
    with pytest.raises(OVDError, match="not registered"):
        ConceptDictionary.load("dataset:concepts_test")


def test_of_several_the_first_that_defines_a_name_counts(tmp_path):
    path = file_of(tmp_path, {"aerosol can": "mine", "gnome": "a small man", "wug": ""})
    lvis_first = ConceptDictionary.load(f"lvis + {path}")
    mine_first = ConceptDictionary.load(f"{path}+lvis")
    assert len(lvis_first) == len(mine_first) == 1828
    assert lvis_first.definition("aerosol can").startswith("a dispenser")
    assert mine_first.definition("aerosol can") == "mine"
    assert lvis_first.definition("gnome") == "a small man"
    assert mine_first.names[:3] == ("aerosol can", "gnome", "wug")


def test_nothing_and_a_file_with_a_plus_in_its_name(tmp_path):
    assert ConceptDictionary.load("") == ConceptDictionary.load("  ") == ConceptDictionary({})
    path = tmp_path / "a+b.json"
    ConceptDictionary({"owl": "a bird"}).save(path)
    assert ConceptDictionary.load(str(path)).names == ("owl",)


SYNSETS = {"dog": ["a domestic animal.", "an unattractive girl"], "barking_dog": ["it bites"]}


class StandInWordNet:
    def all_lemma_names(self, pos):
        assert pos == "n"
        return iter(["dog", "barking_dog"])

    def synsets(self, lemma, pos):
        assert pos == "n"
        return [SimpleNamespace(definition=lambda d=d: d) for d in SYNSETS[lemma]]


def nltk_with(monkeypatch, wordnet):
    nltk, corpus = ModuleType("nltk"), ModuleType("nltk.corpus")
    nltk.corpus, corpus.wordnet = corpus, wordnet
    monkeypatch.setitem(sys.modules, "nltk", nltk)
    monkeypatch.setitem(sys.modules, "nltk.corpus", corpus)


def test_wordnet_gives_the_most_frequent_sense(monkeypatch):
    nltk_with(monkeypatch, StandInWordNet())
    concepts = ConceptDictionary.load("wordnet")
    assert concepts.names == ("barking dog", "dog")
    assert concepts.definition("dog") == "a domestic animal"


def test_without_nltk_or_its_files_the_message_says_what_to_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk", None)
    monkeypatch.setitem(sys.modules, "nltk.corpus", None)
    with pytest.raises(OVDError, match="pip install nltk"):
        ConceptDictionary.load("wordnet")

    class NoFiles:
        def all_lemma_names(self, pos):
            raise LookupError("\n***\nResource wordnet not found")

    nltk_with(monkeypatch, NoFiles())
    with pytest.raises(OVDError, match="nltk.downloader wordnet") as caught:
        ConceptDictionary.load("wordnet")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "spec, says",
    [
        ("lvs", "'lvs' is none of lvis"),
        ("lvis+", "'' is none of"),
        ("+", "'' is none of"),
        ("dataset:no_such_set", "not registered"),
        ("missing.json", "cannot read concept dictionary missing.json"),
        ("a\0b.json", "a\0b.json"),
        ("a" * 5000 + ".json", "cannot read"),
        (None, "described by a text"),
    ],
)
def test_a_wrong_description_is_one_sentence(spec, says):
    with pytest.raises(OVDError, match=says) as caught:
        ConceptDictionary.load(spec)
    assert "\n" not in str(caught.value)


def test_a_folder_or_a_pipe_is_no_dictionary(tmp_path):
    import os

    folder, pipe = tmp_path / "folder.json", tmp_path / "pipe.json"
    folder.mkdir()
    os.mkfifo(pipe)
    for path in (folder, pipe):
        with pytest.raises(OVDError, match=path.name):
            ConceptDictionary.load(str(path))


# The nearest concept lends its definition


def test_the_nearest_concept_lends_its_definition():
    vectors = {"cat": [4.0, 0], "dog": [0, 2], "rock": [-1, 0], "kitten": [9, 1], "fog": [-1, -1],
               "stone": [-1, 0.1]}  # fmt: skip

    def embed(names):
        return torch.tensor([vectors[name.lower()] for name in names])

    concepts = ConceptDictionary({"cat": "a pet", "dog": "a friend", "rock": ""})
    wider = concepts.with_nearest(["Kitten", "fog", "Stone", "dog", "rock"], embed, 0.5)
    assert wider.names == ("cat", "dog", "rock", "kitten", "fog", "stone")
    assert wider.definition("kitten") == "a pet"
    assert wider.definition("fog") == wider.definition("stone") == ""  # rock has none to lend
    assert wider.definition("dog") == "a friend"
    assert concepts.names == ("cat", "dog", "rock")
    assert concepts.with_nearest(["kitten"], embed, 0.9999).definition("kitten") == ""


def test_nobody_to_lend_or_borrow_embeds_nothing():
    def embed(names):
        raise AssertionError("not asked for")

    assert ConceptDictionary({"a": ""}).with_nearest(["b"], embed, 0).names == ("a", "b")
    known = ConceptDictionary({"a": "first"})
    assert known.with_nearest(["A"], embed, 0) == known


# The file


def test_a_saved_dictionary_is_read_back(tmp_path):
    concepts = ConceptDictionary({"größe": "„size“, the", "owl": "", "ant": "an insect"})
    path = tmp_path / "x.json"
    concepts.save(path)
    assert ConceptDictionary.load(str(path)) == concepts
    content = json.loads(path.read_text())
    assert content["format"] == FORMAT and content["version"] == 1
    assert list(content["concepts"]) == ["größe", "owl", "ant"]
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    ConceptDictionary({"owl": ""}).save(path)
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "no space")))
    with pytest.raises(OSError, match="no space"):
        ConceptDictionary({"cat": ""}).save(path)
    monkeypatch.undo()
    assert ConceptDictionary.load(str(path)).names == ("owl",)
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "no valid json"),
        ("{", "no valid json"),
        ("[" * 100_000, "no valid json"),
        ("[]", 'whose "format" is'),
        ("null", 'whose "format" is'),
        ('{"cat": "a pet"}', 'whose "format" is'),
        ('{"format": "ovd-concepts", "version": 2, "concepts": {}}', "version 2"),
        ('{"format": "ovd-concepts", "version": true, "concepts": {}}', "version True"),
        ('{"format": "ovd-concepts", "concepts": {}}', "version None"),
        ('{"format": "ovd-concepts", "version": 1}', '"concepts" are no object'),
        ('{"format": "ovd-concepts", "version": 1, "concepts": ["cat"]}', "no object"),
        ('{"format": "ovd-concepts", "version": 1, "concepts": {"a": 1}}', "must be a text, not 1"),
        ('{"format": "ovd-concepts", "version": 1, "concepts": {"a": null}}', "not None"),
        ('{"format": "ovd-concepts", "version": 1, "concepts": {" ": ""}}', "no letters left"),
        ('{"format": "ovd-concepts", "version": 1, "concepts": {"a": "", "a": "b"}}',
         "the name 'a' 2 times"),
        ('{"format": "ovd-concepts", "version": 1, "concepts": {"a_b": "", "A b": "b"}}',
         "'a_b' and 'A b', which are the same"),
        ('{"format": "ovd-concepts", "version": 1, "concepts": {"\\ud800": ""}}', "surrogate"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_one_sentence(tmp_path, text, says):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(OVDError, match=says) as caught:
        ConceptDictionary.load(str(path))
    assert "bad.json" in str(caught.value) and "\n" not in str(caught.value)


def test_not_utf8_and_cut_at_any_place(tmp_path):
    path = tmp_path / "bad.json"
    path.write_bytes(b'{"format": "\xff"}')
    with pytest.raises(OVDError, match="no valid json"):
        ConceptDictionary.load(str(path))
    whole = file_of(tmp_path, {"owl": "a bird", "cat": ""}).read_bytes()
    for length in range(len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(OVDError, match=r"bad\.json"):
            ConceptDictionary.load(str(path))


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6),
    st.sampled_from([FORMAT, "cat", "\ud800", "a\0b", "\u200b", 10**400]),
)  # fmt: skip
KEYS = st.one_of(st.sampled_from(["format", "version", "concepts", "cat", "Cat", "."]), NAMES)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=8,
)
ALMOST = st.fixed_dictionaries(
    {"format": st.just(FORMAT), "version": st.just(1),
     "concepts": st.one_of(TREES, st.dictionaries(NAMES, st.text(max_size=5), max_size=5))}
)  # fmt: skip


@FEW
@given(st.one_of(st.text(max_size=30), TREES.map(json.dumps), ALMOST.map(json.dumps)))
@example('{"format": "ovd-concepts", "version": 1.0, "concepts": {"a": ""}}')
def test_any_text_is_a_dictionary_or_one_sentence(tmp_path, text):
    path = tmp_path / "any.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    concepts, refusal = made(lambda: ConceptDictionary.load(str(path)))
    if refusal:
        assert "any.json" in refusal and "\n" not in refusal
        return
    raw = json.loads(text)["concepts"]
    assert len(concepts) == len(raw)
    assert all(name in concepts for name in raw)


@FEW
@given(st.dictionaries(NAMES, st.text(" a.,\n", max_size=6), max_size=8))
def test_any_dictionary_survives_its_file(tmp_path, definitions):
    concepts, refusal = made(lambda: ConceptDictionary(definitions))
    if refusal:
        assert "no letters left" in refusal
        assert any(not name.strip("_ .") for name in definitions)
        return
    path = tmp_path / "any.json"
    concepts.save(path)
    assert (
        ConceptDictionary.load(str(path))
        == concepts
        == ConceptDictionary({name: concepts.definition(name) for name in concepts.names})
    )
    for name in definitions:
        assert name in concepts and not concepts.definition(name).endswith((".", " "))
