"""From records to a store, in this process: what is written, resumed, skipped and refused."""

import logging
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image
from tiny_detector import TRAIN, register, write_dataset
from tiny_image_text import D, tiny_model

from ovd_d2.data.mappers.detection import read_image
from ovd_d2.encoders import CropRegionEncoder
from ovd_d2.errors import OVDError
from ovd_d2.jobs import build_region_store as module
from ovd_d2.jobs.build_region_store import BuildSettings, build_region_store, write_regions
from ovd_d2.proposals.build import GroundTruthProposals
from ovd_d2.region_store import RegionStore, merge_manifests, verify


@pytest.fixture
def records(tmp_path):
    write_dataset(tmp_path / "data", count=12)
    register(tmp_path / "data")
    return DatasetCatalog.get(TRAIN)


class Scattered(GroundTruthProposals):
    """0, 1, 2, ... boxes, with scores: the image decides, so that a mix-up is seen."""

    has_scores = True

    def __call__(self, record, image, classes=None):
        count = record["image_id"] % 4
        boxes = torch.rand(count, 4, generator=torch.Generator().manual_seed(record["image_id"]))
        boxes = torch.cat([boxes[:, :2] * 20, boxes[:, :2] * 20 + boxes[:, 2:] * 30], dim=1)
        return [(boxes, image.float().mean() + torch.arange(count))]


SOURCE = Scattered(300)


def pixels_of(record):
    return torch.from_numpy(read_image(record["file_name"], "RGB").copy()).permute(2, 0, 1)


def check(path, records, encoder):
    store = RegionStore(
        path,
        expected_encoder_id=encoder.encoder_id,
        expected_image_ids=[record["image_id"] for record in records],
    )
    assert len(store) == len(records) and verify(path) == []
    for record in records:
        image = pixels_of(record)
        ((boxes, scores),) = SOURCE(record, image)
        found = store[record["image_id"]]
        assert torch.equal(found.boxes, boxes)
        torch.testing.assert_close(found.scores, scores)
        expected = encoder.encode([image], [boxes])[0]
        torch.testing.assert_close(found.embeddings.float(), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("batch", [1, 3, 1000])
@pytest.mark.parametrize("scales", [(1.0,), (1.0, 1.5)])
def test_every_image_gets_its_own_regions(tmp_path, records, batch, scales):
    encoder = CropRegionEncoder(tiny_model(), scales, batch)
    told = []
    report = write_regions(
        records, TRAIN, SOURCE, encoder, tmp_path / "store", on_image=lambda *n: told.append(n)
    )
    check(tmp_path / "store", records, encoder)
    assert report.images == 12 and report.regions == 18 and report.unreadable == ()
    assert told[0] == (0, 12) and told[-1] == (12, 12)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_a_second_run_does_nothing_and_a_broken_one_goes_on(tmp_path, records):
    encoder = CropRegionEncoder(tiny_model(), batch=2)

    class Dies(Scattered):
        def __call__(self, record, image):
            if record["image_id"] == 9:
                raise KeyboardInterrupt
            return super().__call__(record, image)

    with pytest.raises(KeyboardInterrupt):
        write_regions(records, TRAIN, Dies(300), encoder, tmp_path / "store")
    with pytest.raises(OVDError, match="is unfinished"):
        RegionStore(tmp_path / "store")
    told = []
    report = write_regions(
        records, TRAIN, SOURCE, encoder, tmp_path / "store", on_image=lambda *n: told.append(n)
    )
    assert 4 <= report.images < 12 and told[0] == (12 - report.images, 12)
    check(tmp_path / "store", records, encoder)
    assert write_regions(records, TRAIN, SOURCE, encoder, tmp_path / "store").images == 0
    check(tmp_path / "store", records, encoder)


def test_shares_of_several_processes(tmp_path, records):
    encoder = CropRegionEncoder(tiny_model(), batch=2)
    for rank in range(3):
        report = write_regions(
            records, TRAIN, SOURCE, encoder, tmp_path / "store", rank=rank, world_size=3
        )
        assert report.images == 4
    merge_manifests(tmp_path / "store")
    check(tmp_path / "store", records, encoder)


def test_a_store_of_another_encoder_is_not_continued(tmp_path, records):
    first, second = (CropRegionEncoder(tiny_model(name)) for name in ("tiny@0", "tiny@1"))
    write_regions(records, TRAIN, SOURCE, first, tmp_path / "store")
    with pytest.raises(OVDError, match="encoder_id 'tiny@0', but this run has 'tiny@1'"):
        write_regions(records, TRAIN, SOURCE, second, tmp_path / "store")
    with pytest.raises(OVDError, match=r"crop_rule '1x\+1\.5x', but this run has '1x'"):
        write_regions(
            records, TRAIN, SOURCE, CropRegionEncoder(tiny_model(), (1.0,)), tmp_path / "store"
        )


def test_an_unreadable_image_is_left_out_and_named(tmp_path, records, monkeypatch, caplog):
    monkeypatch.setattr(module, "MAX_UNREADABLE", 0.2)
    encoder = CropRegionEncoder(tiny_model(), batch=2)
    broken, resized = records[3], records[7]
    with open(broken["file_name"], "wb") as file:
        file.write(b"no image")
    Image.new("RGB", (5, 5)).save(resized["file_name"])
    with caplog.at_level(logging.WARNING):
        report = write_regions(records, TRAIN, SOURCE, encoder, tmp_path / "store")
    assert report.unreadable == (broken["file_name"], resized["file_name"])
    assert broken["file_name"] in caplog.text and "5 x 5 pixels, annotated as" in caplog.text
    store = RegionStore(tmp_path / "store")
    missing = [broken["image_id"], resized["image_id"]]
    assert store.missing([record["image_id"] for record in records]) == missing
    Image.new("RGB", (broken["width"], broken["height"])).save(broken["file_name"])
    report = write_regions(records, TRAIN, SOURCE, encoder, tmp_path / "store")
    assert report.images == 1 and broken["image_id"] in RegionStore(tmp_path / "store")


def test_too_many_unreadable_images_stop_the_build(tmp_path, records):
    for record in records[5:]:
        with open(record["file_name"], "wb") as file:
            file.write(b"no image")
    encoder = CropRegionEncoder(tiny_model(), batch=1)
    with pytest.raises(OVDError, match=r"1 of 12 images cannot be read, more than 1%.*006\.png"):
        write_regions(records, TRAIN, SOURCE, encoder, tmp_path / "store")
    assert len(verify(tmp_path / "store")) == 0  # and what was done is kept


@pytest.mark.parametrize("is_there", [False, True])
def test_a_build_that_embeds_nothing_leaves_nothing_behind(tmp_path, records, is_there):
    for record in records:
        with open(record["file_name"], "wb") as file:
            file.write(b"no image")
    if is_there:
        (tmp_path / "deep/store").mkdir(parents=True)
    with pytest.raises(OVDError, match="1 of 12 images cannot be read"):
        write_regions(records, TRAIN, SOURCE, CropRegionEncoder(tiny_model(), batch=1),
                      tmp_path / "deep/store")  # fmt: skip
    assert (tmp_path / "deep").exists() == is_there
    assert not is_there or not list((tmp_path / "deep/store").iterdir())


def test_the_whole_command_without_its_process(tmp_path, records, monkeypatch):
    monkeypatch.setattr(module, "build_image_text_model", lambda spec, device: tiny_model())
    monkeypatch.delenv("RANK", raising=False)
    settings = BuildSettings(TRAIN, "gt", "tiny", tmp_path / "store", topk=1, crops="1x")
    report = build_region_store(settings)
    assert (report.images, report.regions) == (12, 12)
    store = RegionStore(tmp_path / "store")
    assert store[1].embeddings.shape == (1, D) and store[1].scores is None
    x, y, w, h = records[0]["annotations"][0]["bbox"]
    assert store[records[0]["image_id"]].boxes.tolist() == [[x, y, x + w, y + h]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "tiny_trian"}, r"--dataset names .*'tiny_trian'.*did you mean tiny_train"),
        ({"proposals": "edge_boxes"}, "--proposals edge_boxes is unknown"),
        ({"encoder": "nonsense"}, "unknown encoder 'nonsense'"),
        ({"crops": "2x"}, r"--crops 2x: use 1x or 1x\+1\.5x"),
        ({"device": "abacus"}, "--device abacus"),
        ({"topk": 0}, "--topk 0"),
        ({"out": Path(__file__, "store")}, "--out.*no folder"),
    ],
)
def test_bad_settings_leave_nothing_behind(tmp_path, records, monkeypatch, changes, message):
    monkeypatch.delenv("RANK", raising=False)
    settings = {"dataset": TRAIN, "proposals": "gt", "encoder": "openai-clip:/x", **changes}
    with pytest.raises(OVDError, match=message):
        build_region_store(BuildSettings(**{"out": tmp_path / "store", **settings}))
    assert not (tmp_path / "store").exists()
