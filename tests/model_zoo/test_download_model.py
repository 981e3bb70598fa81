"""From an address to a folder that --model takes."""

import hashlib
import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ovd_d2.errors import OVDError
from ovd_d2.inference.model_folders import config_and_weights, config_of, model_folder, weights_of
from ovd_d2.jobs import download_model as job
from ovd_d2.jobs.download_model import download_model
from ovd_d2.model_zoo import download_path, find_entry, state

sys.path.append(str(Path(__file__).resolve().parents[1] / "modeling"))

from small_lseg import public_weights


def checkpoint():
    """A small LSeg under their names, as bytes of a .ckpt."""
    weights = {f"net.{key}": value for key, value in public_weights("lsegnet_tiny").items()}
    file = io.BytesIO()
    torch.save({"state_dict": weights}, file)
    return file.getvalue()


CONTENT = checkpoint()
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def entry(server, cache, monkeypatch):
    """A small LSeg on the server, under a name of the zoo."""
    server.files["/a/demo_e200.ckpt"] = CONTENT
    found = replace(
        find_entry("lseg-demo-vit-l16"),
        page="", file="", url=server.url("/a/demo_e200.ckpt"), sha256=DIGEST,
    )  # fmt: skip
    monkeypatch.setattr("ovd_d2.inference.model_folders.find_entry", lambda name: found)
    return found


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_download_and_conversion_make_a_model_of_its_name(entry, cache, server):
    with pytest.raises(OVDError, match="not here yet: run `ovd models download lseg-demo-vit-l16"):
        model_folder(entry.name)
    assert state(entry) == ""
    done = download_model(entry)
    assert done.file.read_bytes() == CONTENT
    assert done.folder == cache / "models" / entry.name == model_folder(entry.name)
    assert files(done.folder) == ["config.yaml", "facts.json", "model.safetensors"]
    facts = json.loads((done.folder / "facts.json").read_text())
    assert facts["downloaded_sha256"] == DIGEST and facts["zoo"] == entry.name
    assert facts["licence"] == "MIT" and facts["downloaded_from"] == entry.url
    assert weights_of(done.folder).is_file()
    assert config_of(done.folder).MODEL.META_ARCHITECTURE == "LSeg"
    assert config_of(done.folder).MODEL.WEIGHTS == ""
    assert state(entry) == "converted"
    assert download_model(entry).facts == ("it is there already",)
    assert len(server.asked) == 1


def test_a_file_that_is_there_is_not_downloaded_again(entry, server, tmp_path):
    path = download_path(entry)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert state(entry) == "downloaded"
    done = download_model(entry, tmp_path / "mine")
    assert server.asked == [] and done.folder == tmp_path / "mine"
    assert model_folder(done.folder) == done.folder


@pytest.mark.parametrize(
    ("known", "words"), [({}, "is another file"), ({"sha256": "", "size": 5}, "and not 5")]
)
def test_another_file_put_there_by_hand_is_refused(entry, cache, known, words):
    path = download_path(entry)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"something")
    with pytest.raises(OVDError, match=rf"{words}.*remove it, and get https://"):
        download_model(replace(entry, **known))
    assert files(cache) == ["demo_e200.ckpt"] and path.read_bytes() == b"something"


def test_equal_names_of_two_hosts_are_two_files(entry, server):
    other = replace(entry, url=server.url("/a/demo_e200.ckpt", "127.0.0.1"), name="other")
    assert other.file_name == entry.file_name
    first, second = download_model(entry).file, download_model(other).file
    assert first != second and first.read_bytes() == second.read_bytes()
    assert len(server.asked) == 2


def test_what_only_a_browser_gets_says_where_to_put_it(entry, cache):
    by_hand = find_entry(entry.name)
    with pytest.raises(OVDError, match=r"https://drive.google.com/\S+ gives lseg-demo.*browser"):
        download_model(by_hand)
    assert not cache.exists()
    path = download_path(by_hand)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert (download_model(by_hand).folder / "model.safetensors").is_file()


def test_a_non_commercial_licence_must_be_accepted(entry, cache, server):
    bound = replace(entry, non_commercial=True, licence="Net Licence")
    with pytest.raises(OVDError, match=r"non-commercial use alone \(Net Licence\): add --accept-l"):
        download_model(bound)
    assert server.asked == [] and not cache.exists()
    folder = download_model(bound, accept_licence=True).folder
    assert json.loads((folder / "facts.json").read_text())["non_commercial"] is True


def test_a_file_that_does_not_convert_leaves_no_folder(entry, cache, server):
    server.files["/a/demo_e200.ckpt"] = b"PK no checkpoint"
    with pytest.raises(OVDError, match=r"demo_e200.ckpt.*is kept; remove it if"):
        download_model(replace(entry, sha256=""))
    assert files(cache) == ["demo_e200.ckpt"]
    assert [path.name for path in (cache / "models").iterdir()] == ["downloads"]


def test_code_in_a_file_does_not_run(entry, server, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    file = io.BytesIO()
    torch.save({"state_dict": {"net.x": Evil()}}, file)
    server.files["/a/demo_e200.ckpt"] = file.getvalue()
    with pytest.raises(OVDError, match="tensors"):
        download_model(replace(entry, sha256=""))
    assert not (tmp_path / "ran").exists()


def test_a_folder_that_holds_something_is_left_alone(entry, tmp_path, server):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(OVDError, match="exists already"):
        download_model(entry, tmp_path / "mine")
    assert server.asked == [] and files(tmp_path / "mine") == ["letter.txt"]


def test_without_the_recipe_the_weights_alone_are_there(entry, monkeypatch):
    monkeypatch.setattr(job, "_config_file", lambda entry: None)
    done = download_model(entry)
    assert files(done.folder) == ["model.safetensors"]
    assert "run this in a checkout" in done.facts[-1]


def test_models_of_the_hub_lie_in_its_own_cache(cache, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(job, "hub_folder", lambda name: asked.append(name) or tmp_path)
    entry = find_entry("owlv2-base")
    assert download_model(entry).file == tmp_path and asked == [entry.hub]
    with pytest.raises(OVDError, match="--out is for models that are converted"):
        download_model(entry, tmp_path / "out")
    assert not cache.exists()


def test_the_hub_without_a_network_is_one_sentence(cache):
    with pytest.raises(OVDError, match="google/owlv2-base-patch16-ensemble.*fetch the model's fol"):
        download_model(find_entry("owlv2-base"))


def test_clip_goes_where_its_package_looks(server, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    server.files["/x/ViT-B-32.pt"] = b"weights"
    sha256 = hashlib.sha256(b"weights").hexdigest()
    entry = replace(find_entry("clip-vit-b-32"), url=server.url("/x/ViT-B-32.pt"), sha256=sha256)
    assert download_model(entry).file == tmp_path / ".cache/clip/ViT-B-32.pt"


def test_what_ships_and_what_cannot_be_opened_by_name(cache):
    assert download_model(find_entry("mini")).facts[0].startswith("it ships")
    for name in ("clip-vit-b-32", "owlv2-base", "detic-lvis-swin-b", "mini-teacher"):
        with pytest.raises(OVDError, match=rf"{name} is no model.*`ovd models info {name}`"):
            model_folder(name)
    with pytest.raises(OVDError, match="There is no model 'nonsense'.*`ovd models list`"):
        model_folder("nonsense")


def test_a_detector_of_the_hub_opens_by_its_name_in_the_zoo():
    cfg, weights = config_and_weights("owlv2-base")
    assert cfg.MODEL.HUGGINGFACE.MODEL == "google/owlv2-base-patch16-ensemble" and not weights
