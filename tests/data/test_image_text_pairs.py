"""Image-text pairs from folders, tables, json lines and tar shards, and their mapper."""

import io
import json
import logging
import tarfile

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from PIL import Image

from ovd_d2 import add_ovd_config
from ovd_d2.data.build import build_train_loader
from ovd_d2.data.datasets.image_text_pairs import load_pairs, register_pairs
from ovd_d2.data.mappers.image_text_pairs import ImageTextPairMapper
from ovd_d2.data.random_state import seeded
from ovd_d2.errors import OVDError
from ovd_d2.files.images import UnreadableImageError


def picture(number=0, size=(40, 30)):
    """One colour per number, a white square in the upper left quarter."""
    array = np.full((size[1], size[0], 3), 20 + number, np.uint8)
    array[: size[1] // 2, : size[0] // 2] = 255
    return Image.fromarray(array)


def encoded(number=0, size=(40, 30)):
    stream = io.BytesIO()
    picture(number, size).save(stream, "PNG")
    return stream.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def shard(path, count=4, first=0, **replace):
    members = []
    for i in range(first, first + count):
        members += [
            (f"{i:09d}.png", replace.get(f"image{i}", encoded(i))),
            (f"{i:09d}.txt", f"caption {i}".encode()),
            (f"{i:09d}.json", json.dumps({"caption": f"caption {i}", "url": "x"}).encode()),
        ]
    return write_tar(path, members)


def captions(records):
    return [record["caption"] for record in records]


def test_folder(tmp_path):
    (tmp_path / "deep").mkdir()
    for name, text in (("a.png", " a cat \n"), ("deep/b.jpg", "ein Hündchen"), ("c.png", "")):
        picture().save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(text, encoding="utf-8")
    picture().save(tmp_path / "no_caption.png")
    records = load_pairs(tmp_path)
    assert captions(records) == ["a cat", "ein Hündchen"]
    assert [r["image_id"] for r in records] == [0, 1]
    assert records[1]["file_name"] == str(tmp_path / "deep/b.jpg")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pairs.csv", 'file_name,caption\na.png,"a cat, red"\n'),
        ("pairs.tsv", "title\tfilepath\na cat, red\ta.png\n"),
        ("bom.csv", '\ufefffile_name,caption\na.png,"a cat, red"\n'),
        ("pairs.jsonl", '\n{"file_name": "a.png", "caption": " a cat, red"}\n'),
    ],
)
def test_tables(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    expected = {"file_name": str(tmp_path / "a.png"), "caption": "a cat, red", "image_id": 0}
    assert load_pairs(tmp_path / name) == [expected]


def test_jsonl_boxes(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"file_name": "/abs/a.png", "caption": "c", "box": [1, 2, 3, 4]}')
    assert load_pairs(path)[0]["box"] == (1.0, 2.0, 3.0, 4.0)
    assert load_pairs(path)[0]["file_name"] == "/abs/a.png"


PAIR = b'{"file_name": "x", "caption": "c", "box": %s}'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", b"a,b\n1,2\n", "has the columns a, b"),
        ("p.csv", b"", "has the columns none"),
        ("p.csv", b"file_name,caption\nx.png,\n", "line 2 has no caption"),
        ("p.csv", b"file_name,caption\nx.png\n", "line 2 has no caption"),
        ("p.csv", b"file_name,caption\n", "holds no pair"),
        ("p.csv", b"file_name,caption\n\xff\xfe,x\n", "no readable table"),
        ("p.jsonl", b'{"file_name": "x", "caption": "c"}\n{"file', "line 2 is no valid json"),
        ("p.jsonl", b"[" * 100000, "line 1 is no valid json"),
        ("p.jsonl", b"[1]", "line 1 has no file_name"),
        ("p.jsonl", b'{"file_name": "x", "caption": 3}', "line 1 has no caption"),
        ("p.jsonl", PAIR % b"[1, 2, 1, 4]", "line 1 has the box"),
        ("p.jsonl", PAIR % b"[0, 0, NaN, 4]", "line 1 has the box"),
        ("p.jsonl", PAIR % b"[0, 0, true, 4]", "line 1 has the box"),
        ("p.jsonl", PAIR % b"7", "line 1 has the box"),
        ("p.jsonl", b"", "holds no pair"),
        ("p.xlsx", b"x", "of no known kind"),
    ],
)  # fmt: skip
def test_bad_files_are_one_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(OVDError, match=message) as caught:
        load_pairs(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_and_empty_places(tmp_path):
    with pytest.raises(OVDError, match="does not exist"):
        load_pairs(tmp_path / "none")
    with pytest.raises(OVDError, match="holds no pair"):
        load_pairs(tmp_path)


@pytest.mark.parametrize("last", ["999999999", "9" * 18, "9" * 5000])
def test_a_range_without_end_ends_at_the_first_that_is_missing(tmp_path, last):
    with pytest.raises(OVDError, match="does not exist|is too large"):
        load_pairs(f"{tmp_path}/{{0..{last}}}.tar")


def test_shards_one_many_and_a_range(tmp_path):
    for number in range(3):
        shard(tmp_path / f"{number:05d}.tar", count=2, first=2 * number)
    everything = [f"caption {i}" for i in range(6)]
    assert captions(load_pairs(tmp_path)) == everything
    assert captions(load_pairs(f"{tmp_path}/{{00000..00002}}.tar")) == everything
    assert captions(load_pairs(tmp_path / "00001.tar")) == everything[2:4]
    with pytest.raises(OVDError, match=r"00003.tar does not exist"):
        load_pairs(f"{tmp_path}/{{00000..00003}}.tar")


def test_shard_reads_the_right_image_and_caption(tmp_path):
    path = write_tar(tmp_path / "x.tar", [
        ("b/1.json", b'{"caption": "from json"}'), ("b/1.png", encoded(1)),
        ("b/2.png", encoded(2)), ("b/2.json", b'{"caption": "not this"}'), ("b/2.txt", b"from txt"),
        ("3.png", encoded(3)), ("4.txt", b"no image"), ("5.png", encoded(5)), ("5.txt", b"  "),
        ("notes.md", b"x"), ("6.json", b'{"caption": null}'), ("6.png", encoded(6)),
    ])  # fmt: skip
    records = load_pairs(path)
    assert captions(records) == ["from json", "from txt"]
    mapper = ImageTextPairMapper(False, image_size=16)
    for record, number in zip(records, (1, 2)):
        image = mapper(record)["image"]
        assert image.shape == (3, 30, 40) and image[0, -1, -1] == 20 + number
    assert records[0]["file_name"] == f"{path}/b/1.png"


@pytest.mark.parametrize("keep", [0.3, 0.8])
def test_truncated_shard_is_named(tmp_path, keep):
    path = shard(tmp_path / "cut.tar")
    content = path.read_bytes().rstrip(b"\0")
    path.write_bytes(content[: int(len(content) * keep) // 512 * 512 + 100])
    with pytest.raises(OVDError, match=r"the shard .*cut\.tar is damaged"):
        load_pairs(path)


def test_no_tar_at_all(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"hello" * 300)
    with pytest.raises(OVDError, match=r"the shard .*x\.tar is damaged"):
        load_pairs(tmp_path / "x.tar")


def config(path, **keys):
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.DATASETS.TRAIN = (f"pairs:{path}",)
    cfg.INPUT.MAPPER, cfg.INPUT.FORMAT = "ImageTextPairMapper", "RGB"
    cfg.MODEL.CLIP.IMAGE_SIZE = 16
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.SEED = 3
    for key, value in keys.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def test_corrupt_image_in_a_shard_is_skipped_and_counted(tmp_path, caplog):
    path = shard(tmp_path / "0.tar", count=8, image5=encoded(5)[:60], image2=b"")
    loader = iter(build_train_loader(config(path, DATALOADER__MAX_CORRUPT_FRACTION=0.3)))
    with caplog.at_level(logging.WARNING):
        seen = {c for _ in range(6) for c in captions(next(loader))}
    assert seen == {f"caption {i}" for i in range(8)} - {"caption 2", "caption 5"}
    assert f"{path}/000000005.png" in caplog.text
    assert "Unreadable so far: 2 of 8" in caplog.text
    loader = iter(build_train_loader(config(path, DATALOADER__MAX_CORRUPT_FRACTION=0.1)))
    with pytest.raises(OVDError, match="more than DATALOADER.MAX_CORRUPT_FRACTION"):
        [next(loader) for _ in range(6)]


def test_a_bomb_in_a_shard_is_refused_before_decoding(tmp_path):
    path = shard(tmp_path / "0.tar", count=1, image0=encoded(0, (200, 200)))
    mapper = ImageTextPairMapper(False, image_size=16, max_pixels=1000)
    with pytest.raises(UnreadableImageError, match="200 x 200 pixels are more than"):
        mapper(load_pairs(path)[0])


def test_shards_resume_at_the_same_sample(tmp_path):
    cfg = config(shard(tmp_path / "0.tar", count=7), INPUT__PAIRS__COLOR_JITTER=0.3)
    loader = build_train_loader(cfg)
    stream = iter(loader)
    for _ in range(3):
        next(stream)
    place = loader.state_dict()
    expected = [next(stream) for _ in range(3)]
    again = build_train_loader(cfg)
    again.load_state_dict(place)
    for one, other in zip(expected, iter(again)):
        assert captions(one) == captions(other)
        assert all(torch.equal(a["image"], b["image"]) for a, b in zip(one, other))


def test_a_data_set_registers_once(tmp_path):
    name = f"pairs:{tmp_path}"
    assert register_pairs(name) and register_pairs(name)
    assert name in DatasetCatalog.list() and not register_pairs("coco_2017_val")


def mapped(mapper, record, seed=0):
    with seeded(seed):
        return mapper(record)["image"]


@pytest.fixture
def record(tmp_path):
    picture().save(tmp_path / "a.png")
    return {"file_name": str(tmp_path / "a.png"), "caption": "c"}


def test_training_image_has_one_size_and_depends_on_the_seed_alone(record):
    mapper = ImageTextPairMapper(
        True, image_size=16, crop_area=(0.3, 0.9), flip=True, color_jitter=0.4, gray=0.5
    )
    images = [mapped(mapper, record, seed) for seed in range(20)]
    assert {tuple(i.shape) for i in images} == {(3, 16, 16)} and images[0].dtype == torch.uint8
    assert torch.equal(images[3], mapped(mapper, record, 3))
    assert len({i.numpy().tobytes() for i in images}) > 10
    gray = sum(bool((i[0] == i[1]).all() and (i[1] == i[2]).all()) for i in images)
    assert 3 < gray <= 20
    assert set(record) == {"file_name", "caption"}


def test_box_is_cropped_exactly_without_jitter(record):
    """The white quarter is 20 x 15 pixels; PIL's own resize of that crop is the reference."""
    box = {**record, "box": (10.0, 5.0, 30.0, 25.0)}
    got = mapped(ImageTextPairMapper(True, image_size=16), box)
    side = (16, 16)
    expected = picture().crop((10, 5, 30, 25)).resize(side, Image.Resampling.BICUBIC)
    difference = got.permute(1, 2, 0).int() - torch.from_numpy(np.array(expected)).int()
    # Cropping first cannot look beyond the border, resizing with a box can.
    assert difference[2:-2, 2:-2].abs().max() <= 1
    test = ImageTextPairMapper(False, image_size=16)(box)["image"]
    assert torch.equal(
        test, torch.from_numpy(np.array(picture().crop((10, 5, 30, 25)))).permute(2, 0, 1)
    )


@pytest.mark.parametrize(
    "box", [(-50, -50, -10, -10), (100, 100, 120, 130), (39.9, 29.9, 40, 30), (-9, -9, 99, 99)]
)
def test_boxes_beside_the_image_and_tiny_ones_give_an_image(record, box):
    record["box"] = box
    for seed in range(5):
        mapper = ImageTextPairMapper(True, image_size=8, box_scale=(0.5, 2.0), box_shift=0.5)
        assert mapped(mapper, record, seed).shape == (3, 8, 8)
    assert min(ImageTextPairMapper(False, image_size=8)(record)["image"].shape) >= 1


def test_jittered_windows_stay_within_their_bounds():
    mapper = ImageTextPairMapper(True, image_size=8, box_scale=(0.8, 1.6), box_shift=0.2)
    windows = []
    for seed in range(200):
        with seeded(seed):
            windows.append(mapper._training_window((400, 400, 500, 600), 1000, 1000))
    windows = torch.tensor(windows)
    sides = windows[:, 2:] - windows[:, :2]
    centers = (windows[:, 2:] + windows[:, :2]) / 2
    relative = sides / torch.tensor([100.0, 200.0])
    assert 0.8 <= relative.min() < 0.85 and 1.5 < relative.max() <= 1.6001
    shift = (centers - torch.tensor([450.0, 500.0])).abs() / torch.tensor([100.0, 200.0])
    assert 0.18 < shift.max() <= 0.2001
    # The two sides are drawn apart: the shape of the crop varies.
    assert (relative[:, 0] / relative[:, 1]).std() > 0.1


@pytest.mark.parametrize(
    ("key", "value"),
    [("BOX_SCALE", [0.0, 1.0]), ("BOX_SCALE", [2.0, 1.0]), ("BOX_SHIFT", -0.1),
     ("CROP_AREA", [0.5, 1.5]), ("COLOR_JITTER", 1.0), ("GRAY", 1.1)],
)  # fmt: skip
def test_bad_augmentations_are_named(key, value):
    cfg = config("x")
    cfg.INPUT.PAIRS[key] = value
    with pytest.raises(OVDError, match=f"INPUT.PAIRS.{key}"):
        ImageTextPairMapper(cfg, True)


def test_mini_pairs_and_objects(mini_root):
    pairs = DatasetCatalog.get("mini_v1_pairs")
    assert len(pairs) == 7194 and sum("box" in p for p in pairs) == 5994
    assert all("/train/" in p["file_name"] for p in pairs)
    assert len(DatasetCatalog.get("mini_v1_object_pairs")) == 5994
    scenes = DatasetCatalog.get("mini_v1_scene_pairs")
    assert len(scenes) == 1200 == len({p["file_name"] for p in scenes})
    assert not any("box" in p for p in scenes) and all(p["caption"] for p in scenes)
    assert scenes == [p for p in pairs if "box" not in p]
    objects = DatasetCatalog.get("mini_v1_objects_val")
    assert len(objects) == 2020 and {o["label"] for o in objects} == set(range(160))
