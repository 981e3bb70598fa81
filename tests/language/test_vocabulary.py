import json
import string

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import given
from hypothesis import strategies as st

from ovd_d2.errors import OVDError
from ovd_d2.language import Vocabulary

WORD = st.text(string.ascii_letters + " éß犬()_-/.'", min_size=1, max_size=12)
NAMES = st.lists(WORD.map(str.strip).filter(bool), min_size=1, max_size=8, unique=True)


def write(folder, name, content):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def read_or_refused_by_name(path):
    try:
        vocabulary = Vocabulary.from_file(path)
    except OVDError as error:
        message = str(error)
    else:
        assert len(vocabulary) == len(set(vocabulary.names)) > 0
        return
    assert str(path) in message


def test_optional_fields_get_defaults():
    vocabulary = Vocabulary(names=("cat", "dog"))
    assert vocabulary.synonyms == (("cat",), ("dog",))
    assert vocabulary.definitions == ("", "")
    assert vocabulary.is_novel == (False, False)
    assert vocabulary.image_counts == ()
    assert len(vocabulary) == 2


def test_equality_hash_and_fingerprint_follow_the_content():
    one = Vocabulary.from_names(["cat", "red mug"])
    same = Vocabulary.from_names("cat,  red mug ")
    assert one == same and hash(one) == hash(same) and one.fingerprint == same.fingerprint
    others = [
        Vocabulary.from_names(["red mug", "cat"]),
        Vocabulary(one.names, is_novel=(True, False)),
        Vocabulary(one.names, synonyms=(("cat", "kitty"), ("red mug",))),
        Vocabulary(one.names, definitions=("animal", "")),
        Vocabulary(one.names, image_counts=(1, 2)),
    ]
    assert one not in others
    assert len({v.fingerprint for v in [one, *others]}) == len(others) + 1


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"names": ()}, "at least one"),
        ({"names": ("cat", "dog", "cat")}, "'cat' occurs twice"),
        ({"names": ("cat", " ")}, "number 2 is empty"),
        ({"names": ("cat", 3)}, "must be strings"),
        ({"names": "cat"}, "must be a list"),
        ({"names": ("c\nat",)}, "control character"),
        ({"names": ("c\ud800",)}, "surrogate"),
        ({"names": ("cat",), "is_novel": (True, False)}, "'is_novel' has 2 entries for 1"),
        ({"names": ("cat",), "definitions": ("a", "b")}, "'definitions' has 2"),
        ({"names": ("cat",), "image_counts": (1, 2)}, "'image_counts' has 2"),
        ({"names": ("cat",), "image_counts": (-1,)}, "negative"),
        ({"names": ("cat",), "image_counts": ("many",)}, "whole numbers"),
        ({"names": ("cat", "dog"), "synonyms": (("cat",),)}, "'synonyms'"),
        ({"names": ("cat",), "synonyms": ("kitty",)}, "synonyms of 'cat' must be a list"),
    ],
)
def test_bad_content_is_refused(fields, message):
    with pytest.raises(OVDError, match=message):
        Vocabulary(**fields)


@given(NAMES)
def test_text_and_json_files_round_trip(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("vocabulary")
    vocabulary = Vocabulary(tuple(names), is_novel=tuple(i % 2 == 0 for i in range(len(names))))
    text = write(folder, "names.txt", "\r\n".join([names[0], "", *names[1:]]) + "\n")
    assert Vocabulary.from_file(text).names == tuple(names)
    assert Vocabulary.from_file(write(folder, "list.json", names)).names == tuple(names)
    assert Vocabulary.load(str(write(folder, "all.json", vocabulary.to_dict()))) == vocabulary


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["names", "categories", "id", "name", "synonyms", "is_novel", "x"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_is_read_or_refused_by_name(tmp_path_factory, content):
    path = write(tmp_path_factory.mktemp("vocabulary"), "any.json", content)
    read_or_refused_by_name(path)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused_by_name(tmp_path_factory, content):
    for suffix in (".txt", ".json"):
        path = tmp_path_factory.mktemp("vocabulary") / f"any{suffix}"
        path.write_bytes(content)
        read_or_refused_by_name(path)


def test_lvis_categories(tmp_path):
    categories = [
        {
            "id": 7,
            "name": "owl",
            "frequency": "r",
            "synonyms": ["owl", "owlet"],
            "def": "a bird",
            "image_count": 3,
        },
        {
            "id": 2,
            "name": "bow_(weapon)",
            "frequency": "f",
            "synonyms": ["bow"],
            "def": "shoots",
            "image_count": 200,
        },
    ]
    vocabulary = Vocabulary.from_file(write(tmp_path, "lvis.json", {"categories": categories}))
    assert vocabulary == Vocabulary(
        names=("bow_(weapon)", "owl"),
        synonyms=(("bow",), ("owl", "owlet")),
        definitions=("shoots", "a bird"),
        is_novel=(False, True),
        image_counts=(200, 3),
    )


def test_own_novel_mark_wins_over_frequency(tmp_path):
    categories = [{"id": 1, "name": "owl", "frequency": "r", "is_novel": False}]
    vocabulary = Vocabulary.from_file(write(tmp_path, "a.json", {"categories": categories}))
    assert vocabulary.is_novel == (False,) and vocabulary.image_counts == ()


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("empty.txt", "\n \n", "at least one"),
        ("twice.txt", "cat\ncat\n", "occurs twice"),
        ("bad.json", "{", "not valid JSON"),
        ("bare.json", '{"images": []}', "expected a list of names"),
        ("none.json", '{"categories": []}', "non-empty list"),
        ("noname.json", '{"categories": [{"id": 1}]}', "with a 'name'"),
        ("noid.json", '{"categories": [{"name": "cat"}]}', "integer 'id'"),
        (
            "sameid.json",
            '{"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            "share",
        ),
        ("flags.json", '{"names": ["a"], "is_novel": ["false"]}', "true and false"),
        ("deep.json", "[" * 100_000, "not valid JSON"),
        ("names.csv", "cat", "must end in .txt or .json"),
    ],
)
def test_wrong_files_are_refused_by_name(tmp_path, name, content, message):
    path = write(tmp_path, name, content)
    with pytest.raises(OVDError, match=message) as caught:
        Vocabulary.load(str(path))
    assert name in str(caught.value)


def test_missing_and_undecodable_files_are_refused(tmp_path):
    with pytest.raises(OVDError, match=r"missing\.txt.*No such file"):
        Vocabulary.load(str(tmp_path / "missing.txt"))
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(OVDError, match=r"latin\.txt"):
        Vocabulary.from_file(tmp_path / "latin.txt")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(OVDError, match=r"folder\.txt"):
        Vocabulary.from_file(tmp_path / "folder.txt")


def test_load_takes_lists_and_refuses_nothing():
    assert Vocabulary.load("cat, traffic light/signal").names == ("cat", "traffic light/signal")
    assert Vocabulary.load("red mug").names == ("red mug",)
    for empty in ("", "  "):
        with pytest.raises(OVDError, match="empty vocabulary"):
            Vocabulary.load(empty)
    with pytest.raises(OVDError, match="number 2 is empty"):
        Vocabulary.load("cat,,dog")


@pytest.fixture
def dataset():
    name = "vocabulary_test_dataset"
    yield name
    for catalog in (MetadataCatalog, DatasetCatalog):
        if name in catalog.list():
            catalog.remove(name)


def test_metadata_fields_are_read(dataset):
    MetadataCatalog.get(dataset).set(
        thing_classes=["cat", "owl"],
        synonyms=[["cat", "kitty"], ["owl"]],
        definitions=["", "a bird"],
        is_novel=[False, True],
        class_image_count=[{"id": 1, "image_count": 9}, {"id": 2, "image_count": 0}],
    )
    assert Vocabulary.load(f"dataset:{dataset}") == Vocabulary(
        ("cat", "owl"), (("cat", "kitty"), ("owl",)), ("", "a bird"), (False, True), (9, 0)
    )


def test_builtin_lvis_metadata():
    vocabulary = Vocabulary.from_metadata("lvis_v1_train")
    assert len(vocabulary) == len(vocabulary.image_counts) == 1203
    assert vocabulary.names[0] == "aerosol_can" and vocabulary.image_counts[0] > 0


def test_names_that_only_loading_reveals(dataset):
    def load():
        MetadataCatalog.get(dataset).thing_classes = ["cat"]
        return []

    DatasetCatalog.register(dataset, load)
    assert Vocabulary.from_metadata(dataset).names == ("cat",)


def test_unusable_datasets_are_refused(dataset):
    with pytest.raises(OVDError, match=r"'lvis_v1_trian' is not registered.*lvis_v1_train"):
        Vocabulary.load("dataset:lvis_v1_trian")
    assert "lvis_v1_trian" not in MetadataCatalog.list()  # asking must not register it
    MetadataCatalog.get(dataset).evaluator_type = "coco"
    with pytest.raises(OVDError, match="no thing_classes"):
        Vocabulary.from_metadata(dataset)

    def load():
        raise FileNotFoundError(2, "No such file or directory", "a.json")

    DatasetCatalog.register(dataset, load)
    with pytest.raises(OVDError, match="could not be loaded"):
        Vocabulary.from_metadata(dataset)
    MetadataCatalog.get(dataset).set(thing_classes=["cat", "cat"])
    with pytest.raises(OVDError, match=f"{dataset}.*occurs twice"):
        Vocabulary.from_metadata(dataset)
