"""The entries that ship, and what malformed ones say."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ovd_d2.config_file import load_config
from ovd_d2.errors import OVDError
from ovd_d2.inference import packaged_models
from ovd_d2.model_zoo import convert_command, download_path, find_entry, read_entries, zoo_names
from ovd_d2.model_zoo.entries import CONVERTERS, ENTRIES, as_entry
from ovd_d2.proposals.huggingface_detector import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
GOOD = {
    "name": "net", "system": "Net", "licence": "MIT", "source": "https://net.example.org",
    "url": "https://net.example.org/files/net.pth", "size": 10, "sha256": "0" * 64,
    "results": [{"data": "COCO", "protocol": "box AP", "values": {"AP": 40.5}}],
}  # fmt: skip


def test_every_converter_and_family_has_its_models():
    entries = read_entries().values()
    assert len(entries) == len({entry.name for entry in entries}) == 72
    counts = Counter(entry.system for entry in entries)
    assert counts == {
        "ovd_d2": 2, "GLIP": 5, "Detic": 18, "object-centric-ovd": 12, "LSeg": 11, "GroupViT": 4,
        "openai-clip": 9, "Grounding DINO": 2, "MM Grounding DINO": 1, "LLMDet": 3, "OWLv2": 2,
        "OmDet-Turbo": 1, "MAVL": 2,
    }  # fmt: skip
    assert {entry.converter for entry in entries} == {"", *CONVERTERS}
    assert {"grounding-dino", "mm-grounding-dino", "omdet-turbo", "owlv2"} <= FAMILIES.keys()
    assert set(packaged_models()) <= {entry.name for entry in entries if entry.packaged}


def test_every_config_is_there_and_every_file_has_a_place_of_its_own():
    entries = read_entries().values()
    for entry in entries:
        if entry.config:
            assert (ROOT / "configs" / entry.config).is_file(), entry.name
    places = [download_path(entry) for entry in entries if entry.file_name]
    assert len(set(places)) == len(places) > 50
    load_config(str(ROOT / "configs" / find_entry("glip-t").config))


def test_every_model_is_opened_by_its_name_or_says_how_it_is_used():
    for entry in read_entries().values():
        assert bool(entry.use) != bool(entry.config), entry.name


def test_non_commercial_ones_are_those_of_nvlabs():
    flagged = {entry.name for entry in read_entries().values() if entry.non_commercial}
    assert flagged == {name for name in zoo_names() if name.startswith("groupvit")}


def test_addresses_and_digests_of_clip_are_those_of_its_package():
    from clip.clip import _MODELS

    ours = {
        e.use.rpartition("openai-clip:")[2]: (e.url, e.sha256)
        for e in read_entries().values()
        if e.system == "openai-clip"
    }
    assert ours == {name: (url, url.split("/")[-2]) for name, url in _MODELS.items()}


def test_nothing_is_called_verified_that_nobody_has_downloaded():
    assert not any(entry.verified for entry in read_entries().values())


def test_the_command_that_converts():
    assert convert_command(find_entry("glip-t-a")) == (
        "ovd convert glip glip_a_tiny_o365.pth --out glip-t-a.safetensors"
    )
    assert convert_command(find_entry("detic-coco-r50")).endswith(
        "--embeddings detic-coco-r50_class_embeddings.safetensors "
        "--vocabulary dataset:coco_2017_ovd_80_val"
    )
    assert convert_command(find_entry("owlv2-base")) == ""


def test_an_unknown_name_says_which_are_near():
    with pytest.raises(OVDError, match=r"no 'gilp-t'.*Did you mean glip-t"):
        find_entry("gilp-t")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sice": 3}, "unknown field 'sice'"),
        ({"size": "10"}, "size is '10', which is no number of bytes"),
        ({"size": True}, "size is 'True'"),
        ({"size": 0}, "size must be above 0"),
        ({"sha256": "abc"}, "sha256 must be 64 digits"),
        ({"name": "Net work"}, "a name is of a-z"),
        ({"name": "../net"}, "a name is of a-z"),
        ({"url": "http://net.example.org/net.pth"}, "must be https://HOST/PATH"),
        ({"url": "https://net.example.org/../net.pth"}, "must be https://HOST/PATH"),
        ({"url": "https://me@net.example.org/net.pth"}, "must be https://HOST/PATH"),
        ({"url": "https://net.example.org/%2e%2e/net.pth"}, "must be https://HOST/PATH"),
        ({"url": "https://net.example.org/net.pth?x=1"}, "must be https://HOST/PATH"),
        ({"url": "https://[net/net.pth"}, "must be https://HOST/PATH"),
        ({"url": ""}, "one of url, page, hub, packaged must be given, here 0 are"),
        ({"hub": "a/b"}, "here 2 are"),
        ({"url": "", "hub": "ab"}, "is no OWNER/NAME"),
        ({"url": "", "page": "https://net.example.org/p"}, "page needs the name of the file"),
        ({"file": "a/b.pth"}, "is no plain name"),
        ({"file": ".."}, "is no plain name"),
        ({"converter": "caffe"}, "converter must be one of detic,"),
        ({"config": "a.yaml"}, "config needs a converter"),
        ({"config": "../a.yaml", "converter": "glip"}, "config must be a yaml below"),
        ({"licence": ""}, "must say something"),
        ({"source": "net.example.org"}, "source must begin with https://"),
        ({"non_commercial": 1}, "non_commercial is '1', which is no true or false"),
        ({"results": {}}, "results is '{}', which is no list of results"),
        ({"results": [{"data": "COCO"}]}, "result 0 lacks protocol, values"),
        ({"results": [{**GOOD["results"][0], "values": {"AP": 400}}]}, "no object of percents"),
        ({"results": [3]}, "result 0 must be an object"),
    ],
)
def test_what_is_wrong_is_named(change, words):
    as_entry(GOOD, "models.json, model 0")
    with pytest.raises(OVDError, match=words) as caught:
        as_entry({**GOOD, **change}, "models.json, model 0")
    assert str(caught.value).startswith("models.json, model 0")


def test_a_field_that_must_be_there_is_named():
    with pytest.raises(OVDError, match="model 3 lacks licence"):
        as_entry({key: value for key, value in GOOD.items() if key != "licence"}, "model 3")


@pytest.mark.parametrize(
    ("content", "words"),
    [("[", "cannot be read"), ("{}", "must hold a list"), (json.dumps([GOOD, GOOD]), "two models"),
     ("[[]]", "model 0 must be an object"), ("[" * 100_000, "cannot be read"),
     (b"\xff", "cannot be read")],
)  # fmt: skip
def test_a_broken_file_is_one_sentence(content, words, tmp_path):
    path = tmp_path / "models.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(OVDError, match=words) as caught:
        read_entries(path)
    assert str(path) in str(caught.value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=4,
)
FIELDS = sorted(json.loads(ENTRIES.read_text())[2].keys() | GOOD.keys() | {"page", "hub", "file"})


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=8), VALUES, max_size=4))
def test_whatever_stands_in_a_field_is_an_entry_or_one_sentence(values):
    said, entry = "", None
    try:
        entry = as_entry({**GOOD, **values}, "models.json, model 0")
    except OVDError as error:
        said = str(error)
    if entry is None:
        assert said.startswith("models.json, model 0")
        assert len(said.splitlines()) == 1 and len(said) < 400
    else:
        assert entry.url.startswith("https://") or entry.page or entry.hub
        assert ".." not in download_path(entry).parts
