"""Importing published pickles: what they hold arrives, and nothing of them is run."""

import contextlib
import json
import os
import pickle
import resource
from collections import OrderedDict

import numpy as np
import pytest
import torch

from ovd_d2.cli.app import main
from ovd_d2.errors import OVDError
from ovd_d2.region_store import RegionStore
from ovd_d2.region_store.object_centric_ovd import import_object_centric_ovd, read_regions
from ovd_d2.region_store.restricted_unpickler import read_restricted_pickle

D = 4


def published(seed, count):
    """A list of (box, (1, D) tensor), not normalised, as object-centric-ovd writes it."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values.flatten(1) * 100
    embeddings = torch.randn(count, D, generator=generator) * 7
    return [(box.tolist(), row.clone()) for box, row in zip(boxes, embeddings.split(1))]


def write_source(folder, names=("000000000007", "000000000009"), **changes):
    folder.mkdir(exist_ok=True)
    for seed, name in enumerate(names):
        content = changes.get(name, published(seed, 3))
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(content))
    return folder


def write_annotations(path, names=("000000000007", "000000000009")):
    images = [{"id": int(name[-4:]), "file_name": f"train/{name}.jpg"} for name in names]
    path.write_text(json.dumps({"images": images}))
    return path


def test_what_was_published_arrives(tmp_path):
    source = write_source(tmp_path / "source", ("000000000007", "000000000009", "000000000555"))
    names = ("000000000007", "000000000009", "000000000011")
    annotations = write_annotations(tmp_path / "a.json", names)
    settings = {"encoder_id": "clip@1", "dataset_name": "coco", "dim": D}
    report = import_object_centric_ovd(source, annotations, tmp_path / "store", **settings)
    assert (report.images, report.images_without_file, report.files_without_image) == (2, 1, 1)
    store = RegionStore(tmp_path / "store", expected_encoder_id="clip@1")
    for seed, image_id in enumerate((7, 9)):
        boxes, embeddings = zip(*published(seed, 3))
        expected = torch.nn.functional.normalize(torch.cat(embeddings), dim=1)
        assert torch.equal(store[image_id].boxes, torch.tensor(boxes))
        torch.testing.assert_close(store[image_id].embeddings.float(), expected, atol=1e-3, rtol=0)
    again = import_object_centric_ovd(source, annotations, tmp_path / "store", **settings)
    assert again.images == 2
    import_object_centric_ovd(source, annotations, tmp_path / "top", topk=1, **settings)
    assert torch.equal(RegionStore(tmp_path / "top")[9].boxes, store[9].boxes[:1])


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_is_read_as_pickle_reads_it(tmp_path, protocol):
    content = {"a": [1, 2.5, None, True, "text", b"bytes"], "b": (np.arange(6.0).reshape(2, 3),),
               "f": np.asfortranarray(np.arange(6).reshape(2, 3)), "s": np.float32(2.5),
               "t": torch.arange(6).view(2, 3).T,
               "o": OrderedDict(x=torch.ones(2).half())}  # fmt: skip
    path = tmp_path / "plain.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    found = read_restricted_pickle(path)
    assert found["a"] == content["a"] and found["s"] == 2.5
    assert np.array_equal(found["b"][0], content["b"][0])
    assert np.array_equal(found["f"], content["f"]) and found["f"].dtype == content["f"].dtype
    assert np.array_equal(found["t"], content["t"].numpy())
    assert found["o"]["x"].tolist() == [1, 1] and found["o"]["x"].dtype == np.float16


class Runs:
    """Unpickled by Python itself, it leaves a mark."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "name"),
    [(os.mkdir, "mkdir"), (exec, "exec"), (eval, "eval"), (torch.load, "load"),
     (np.fromfile, "fromfile"), (getattr, "getattr")],
)  # fmt: skip
def test_nothing_is_run(tmp_path, function, name):
    mark = tmp_path / "mark"
    arguments = (str(mark),) if function is os.mkdir else (f"open({str(mark)!r}, 'w')",)
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps([([0, 0, 1, 1], Runs(function, *arguments))]))
    with pytest.raises(OVDError, match=rf"evil\.pkl is refused: it asks for .*{name}"):
        read_regions(path, D)
    assert not mark.exists()
    if function is os.mkdir:  # the test can fail: pickle itself does run it
        pickle.loads(path.read_bytes())
        assert mark.exists()


def box_and(value, box=(0, 0, 1, 1)):
    return [(list(box), value)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"boxes": []}, "holds a dict, not a list"),
        ([1], "region 0 of .* is not a pair"),
        (box_and(torch.ones(1, D + 1)), r"embedding of region 0 .* has shape \(1, 5\)"),
        (box_and(torch.ones(1, D), (0, 0, 1)), "box of region 0 .* has shape"),
        (box_and("text"), "is not made of numbers"),
        (box_and(torch.zeros(1, D)), "zero, nan or infinite"),
        (box_and(torch.full((1, D), float("nan"))), "zero, nan or infinite"),
        (box_and(np.array([None])), "not of numbers"),
    ],
)
def test_other_layouts_are_named(tmp_path, content, message):
    source = write_source(tmp_path / "source", **{"000000000009": content})
    annotations = write_annotations(tmp_path / "a.json")
    settings = {"encoder_id": "clip@1", "dataset_name": "coco", "dim": D}
    with pytest.raises(OVDError, match=message) as caught:
        import_object_centric_ovd(source, annotations, tmp_path / "store", **settings)
    assert "000000000009.pkl" in str(caught.value)


def test_a_cut_pickle_is_refused(tmp_path):
    whole = pickle.dumps(published(0, 3))
    path = tmp_path / "cut.pkl"
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(OVDError, match=r"cut\.pkl is refused"):
            read_regions(path, D)


def test_a_small_file_does_not_become_a_large_array(tmp_path):
    path = tmp_path / "bomb.pkl"
    path.write_bytes(pickle.dumps(box_and(torch.ones(1).expand(10**9))))
    with pytest.raises(OVDError, match="larger than its storage"):
        read_regions(path, D)


def nested(depth):
    """Lists in lists, each shared ten times: 10 ** depth values in a few bytes."""
    values = [0] * 10
    for _ in range(depth):
        values = [values] * 10
    return values


CALL = b"c_codecs\nencode\nq\x00X\x50\xc3\x00\x00" + b"x" * 50_000 + b"q\x01"
CALL += b"X\x06\x00\x00\x00latin1q\x02"
BOMBS = {
    "a memo of 2 ** 28 places": b"\x80\x04]r\x00\x00\x00\x10.",
    "8 GB of bytes": b"\x80\x04\x8e\x00\x00\x00\x00\x02\x00\x00\x00abc.",
    "lists in lists": pickle.dumps(nested(8)),
    "one text, many times": b"\x80\x02" + CALL + b"](" + b"h\x00h\x01h\x02\x86R" * 2000 + b"e.",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_takes_little_memory(tmp_path, bomb):
    path = tmp_path / "bomb.pkl"
    path.write_bytes(BOMBS[bomb])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(OVDError):
        assert read_restricted_pickle(path) == []  # of a memo in Python, a dict, nothing is left
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # KB


def test_what_is_shared_stays_shared(tmp_path):
    path = tmp_path / "shared.pkl"
    box = [1.0, 2.0, 3.0, 4.0]
    path.write_bytes(pickle.dumps([box] * 50))
    found = read_restricted_pickle(path)
    assert found == [box] * 50 and found[0] is found[49]


def test_names_that_do_not_decide_are_refused(tmp_path):
    source = write_source(tmp_path / "source")
    settings = {"encoder_id": "clip@1", "dataset_name": "coco", "dim": D}
    twice = write_annotations(tmp_path / "twice.json", ("000000000007", "000000000007"))
    with pytest.raises(OVDError, match="are both named 000000000007"):
        import_object_centric_ovd(source, twice, tmp_path / "store", **settings)
    other = write_annotations(tmp_path / "other.json", ("000000000123",))
    with pytest.raises(OVDError, match="wrong pair"):
        import_object_centric_ovd(source, other, tmp_path / "store", **settings)
    write_source(source / "again")
    with pytest.raises(OVDError, match="are of the same image"):
        import_object_centric_ovd(source, other, tmp_path / "store", **settings)


def test_the_command(tmp_path, capsys):
    source = write_source(tmp_path / "source")
    annotations = write_annotations(tmp_path / "a.json")
    command = ["regions", "import", str(source), "--annotations", str(annotations), "--out",
               str(tmp_path / "store"), "--dataset", "coco", "--dim", str(D)]  # fmt: skip
    with pytest.raises(SystemExit) as exit_info:
        main([*command, "--format", "nonsense"])
    assert exit_info.value.code == 2 and "--format nonsense" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_info:
        main(command)
    assert exit_info.value.code == 0
    assert "2 images; 0 images of a.json have no file" in capsys.readouterr().out
    assert RegionStore(tmp_path / "store").facts.encoder_id.startswith("openai-clip:ViT-B/32@")
