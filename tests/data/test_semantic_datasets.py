"""Semantic data sets: label sets, values of the published maps, lists, and what is refused."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from data.semantic_trees import SHAPE, filled, voc, write_image, write_list, write_map
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

import ovd_d2  # noqa: F401 (registers)
from ovd_d2.data.datasets.semantic import ade20k_847, label_sets, read_label_map
from ovd_d2.data.datasets.semantic.label_maps import paint_masks
from ovd_d2.data.datasets.semantic.registration import SPLITS, Split, load_split
from ovd_d2.errors import OVDError
from ovd_d2.language import Vocabulary
from ovd_d2.language.dataset_classes import class_names, is_semantic

COUNTS = {
    "ade20k_150_sem_seg_train": 150, "ade20k_150_sem_seg_val": 150,
    "ade20k_150_lseg_sem_seg_train": 150, "ade20k_150_lseg_sem_seg_val": 150,
    "voc_2012_sem_seg_train": 21, "voc_2012_sem_seg_train_aug": 21, "voc_2012_sem_seg_val": 21,
    "voc_2012_20_sem_seg_val": 20, "pascal_context_59_sem_seg_train": 59,
    "pascal_context_59_sem_seg_val": 59, "pascal_context_60_sem_seg_train": 60,
    "pascal_context_60_sem_seg_val": 60, "coco_stuff_sem_seg_train": 171,
    "coco_stuff_sem_seg_val": 171, "coco_object_sem_seg_train": 81, "coco_object_sem_seg_val": 81,
}  # fmt: skip


def digest(names):
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def maps_of(name, root):
    records = load_split(SPLITS[name], root)
    return [read_label_map(r, len(SPLITS[name].classes)) for r in records]


def test_registered_with_their_classes():
    for name, count in COUNTS.items():
        metadata = MetadataCatalog.get(name)
        assert name in DatasetCatalog
        assert len(Vocabulary.from_metadata(name)) == len(metadata.stuff_classes) == count
        assert metadata.evaluator_type == "sem_seg"
        assert metadata.ignore_label == 255
    assert set(SPLITS) == set(COUNTS)


def test_the_readme_has_a_section_for_each():
    readme = (Path(__file__).parents[2] / "datasets/README.md").read_text()
    for name in (*SPLITS, "ade20k_847_sem_seg_val", "pascal5i_fold0_val", "fss1000_test"):
        section = MetadataCatalog.get(name).readme_section
        assert f"## {section}\n" in readme, name
        if not name.startswith(("pascal5i", "fss")):
            assert f"`{name.removesuffix('_val').removesuffix('_train')}" in readme, name


def test_label_sets_are_the_published_ones():
    assert digest(label_sets.PASCAL_5I) == (
        "7d877f185c807bc51b4cfb4f4202fc0b4e1c6724b782ba245fe36f8d254f0ad7"
    )
    assert digest(label_sets.COCO_20I) == (
        "3ccf800c20ccafc41fb0954368d338bd2cd11f9191978763fda565129ba1657a"
    )
    words = list(label_sets.ADE20K_150_LSEG)
    assert (words[58], words[130]) == ("screen door", "screen")
    words[58] = "screen"
    assert digest(words) == "6eb499914339dc1b71fa471db02850f2deaaa0fd6cf3495dfbc2ac2ce8e160d6"


def test_background_comes_first():
    for name in (
        "voc_2012_sem_seg_val",
        "pascal_context_60_sem_seg_val",
        "coco_object_sem_seg_val",
    ):
        assert MetadataCatalog.get(name).stuff_classes[0] == "background"
        assert MetadataCatalog.get(name).stuff_classes.count("background") == 1
    assert "background" not in MetadataCatalog.get("pascal_context_59_sem_seg_val").stuff_classes


def test_synonyms_of_ade20k():
    vocabulary = Vocabulary.from_metadata("ade20k_150_sem_seg_val")
    assert vocabulary.names[8] == "window"
    assert vocabulary.synonyms[6] == ("road", "route")


def test_detectron2s_own_semantic_names_have_classes():
    assert len(Vocabulary.from_metadata("cityscapes_fine_sem_seg_val")) == 19
    assert len(Vocabulary.from_metadata("ade20k_sem_seg_val")) == 150
    things = Vocabulary.from_metadata("cityscapes_fine_instance_seg_val")
    assert len(things) == 8  # stuff and things: it asks for boxes
    assert len(class_names(MetadataCatalog.get("coco_2017_val_panoptic_separated"))) == 80


def test_ade20k_counts_from_0(tmp_path):
    folder = tmp_path / "ADEChallengeData2016"
    write_map(folder / "annotations/validation/x.png", (0, 1, 150))
    write_image(folder / "images/validation/x.jpg")
    (found,) = maps_of("ade20k_150_sem_seg_val", tmp_path)
    assert (found == filled((255, 0, 149))).all()
    write_map(folder / "annotations/validation/x.png", (0, 151))
    with pytest.raises(OVDError, match="x.png holds the value 150, but the data set has 150"):
        maps_of("ade20k_150_sem_seg_val", tmp_path)


def test_voc(tmp_path):
    voc(tmp_path)
    for name in ("voc_2012_sem_seg_val", "voc_2012_sem_seg_train_aug"):
        first, second = maps_of(name, tmp_path)
        assert (first == filled((0, 1, 20, 255))).all()
        assert first.dtype == np.int64
    assert (maps_of("voc_2012_20_sem_seg_val", tmp_path)[0] == filled((255, 0, 19, 255))).all()


def test_numbers_of_a_palette_are_read_not_its_colours(tmp_path):
    picture = Image.fromarray(filled((0, 1, 2)).astype(np.uint8)).convert("P")
    picture.putpalette([255, 255, 255, 0, 0, 0, 9, 200, 30])
    picture.save(tmp_path / "x.png")
    found = read_label_map({"sem_seg_file_name": tmp_path / "x.png"}, 3)
    assert (found == filled((0, 1, 2))).all()


def test_coco_stuff_and_coco_object(tmp_path):
    # person, toothbrush, banner, wood, unlabelled
    write_map(tmp_path / "coco/stuffthingmaps/val2017/x.png", (0, 89, 91, 181, 255))
    write_image(tmp_path / "coco/val2017/x.jpg")
    write_image(tmp_path / "coco/val2017/without_map.jpg")
    (stuff,) = maps_of("coco_stuff_sem_seg_val", tmp_path)
    assert (stuff == filled((0, 79, 80, 170, 255))).all()
    (things,) = maps_of("coco_object_sem_seg_val", tmp_path)
    assert (things == filled((1, 80, 0, 0, 0))).all()  # nothing is ignored
    write_map(tmp_path / "coco/stuffthingmaps/val2017/x.png", (0, 11))  # "street sign": nobody's
    with pytest.raises(OVDError, match="x.png holds the value 11, which is none"):
        maps_of("coco_stuff_sem_seg_val", tmp_path)


def test_pascal_context_from_either_kind_of_file(tmp_path):
    from scipy.io import savemat

    folder = tmp_path / "VOC2010"
    write_list(folder / "ImageSets/Main/val.txt", ["x"])
    write_image(folder / "JPEGImages/x.jpg")
    (folder / "trainval").mkdir()
    labels = filled((2, 9, 458, 1))  # aeroplane, bag, wood, and one of the other 400
    savemat(folder / "trainval/x.mat", {"LabelMap": labels.astype(np.uint16)})
    (found,) = maps_of("pascal_context_59_sem_seg_val", tmp_path)
    assert (found == filled((0, 1, 58, 255))).all()
    (found,) = maps_of("pascal_context_60_sem_seg_val", tmp_path)
    assert (found == filled((1, 2, 59, 0))).all()
    write_map(folder / "SegmentationClassContext/x.png", (1, 2, 59, 0))
    (found,) = maps_of("pascal_context_59_sem_seg_val", tmp_path)
    assert (found == filled((0, 1, 58, 255))).all()
    (found,) = maps_of("pascal_context_60_sem_seg_val", tmp_path)
    assert (found == filled((1, 2, 59, 0))).all()


def test_ade20k_with_847_classes(tmp_path, monkeypatch):
    folder = tmp_path / "ADE20K_2021_17_01"
    lines = ["pier, wharf", "pier", "screen, silver screen", *(f"thing {i}" for i in range(844))]
    write_list(folder / "classes.txt", lines)
    write_image(folder / "images_detectron2/validation/x.jpg")
    write_map(folder / "annotations_detectron2/validation/x.tif", (0, 846, 65535), np.uint16)
    monkeypatch.setattr(ade20k_847, "NAME", "ade20k_847_here")
    split = Split("ADE20K_2021_17_01/images_detectron2/validation",
                  (("ADE20K_2021_17_01/annotations_detectron2/validation", ".tif", ""),), (),
                  "ADE20K")  # fmt: skip
    (record,) = ade20k_847.load_ade20k_847(split, tmp_path)
    metadata = MetadataCatalog.get("ade20k_847_here")
    assert metadata.stuff_classes[:4] == ["wharf", "pier", "screen", "thing 0"]
    assert metadata.synonyms[0] == ["pier", "wharf"]
    assert len(set(metadata.stuff_classes)) == 847
    assert (read_label_map(record, 847, 65535) == filled((0, 846, 65535))).all()
    write_list(folder / "classes.txt", lines[:-1])
    with pytest.raises(OVDError, match="classes.txt has 846 lines"):
        ade20k_847.load_ade20k_847(split, tmp_path)
    (folder / "classes.txt").unlink()
    with pytest.raises(OVDError, match="classes.txt, the list of classes, cannot be read"):
        ade20k_847.load_ade20k_847(split, tmp_path)
    MetadataCatalog.remove("ade20k_847_here")
    assert MetadataCatalog.get("ade20k_847_sem_seg_val").ignore_label == 65535
    assert "ade20k_847_sem_seg_val" in DatasetCatalog


def test_a_data_set_with_stuff_alone_is_semantic():
    assert is_semantic({"stuff_classes": ["sky"]})
    assert not is_semantic({"stuff_classes": ["sky"], "thing_classes": ["cat"]})
    assert not is_semantic({"stuff_classes": ["sky"], "evaluator_type": "coco_panoptic_seg"})
    both = {"stuff_classes": ["sky"], "thing_classes": ["cat"]}
    assert class_names(both) == ["cat"]
    assert class_names({**both, "evaluator_type": "cityscapes_sem_seg"}) == ["sky"]
    assert class_names({}) is None


def test_missing_parts_are_named(tmp_path):
    with pytest.raises(OVDError, match="SegmentationClass, the folder .* section 'Pascal VOC'"):
        load_split(SPLITS["voc_2012_sem_seg_val"], tmp_path)
    voc(tmp_path)
    write_list(tmp_path / "VOC2012/ImageSets/Segmentation/val.txt", ["a", "c"])
    with pytest.raises(OVDError, match="SegmentationClass lacks c.png, which .*val.txt names"):
        load_split(SPLITS["voc_2012_sem_seg_val"], tmp_path)
    (tmp_path / "VOC2012/JPEGImages/b.jpg").unlink()
    with pytest.raises(OVDError, match="JPEGImages lacks b.jpg, .*1 of 2"):
        load_split(SPLITS["voc_2012_sem_seg_train"], tmp_path)
    (tmp_path / "VOC2012/ImageSets/Segmentation/val.txt").unlink()
    with pytest.raises(OVDError, match="val.txt, the list of images, cannot be read"):
        load_split(SPLITS["voc_2012_sem_seg_val"], tmp_path)


def test_refused_maps_are_named(tmp_path):
    bad = tmp_path / "bad.png"
    record = {"sem_seg_file_name": str(bad)}
    with pytest.raises(OVDError, match="bad.png does not exist"):
        read_label_map(record, 2)
    bad.write_bytes(b"nothing")
    with pytest.raises(OVDError, match="Cannot read the label map .*bad.png"):
        read_label_map(record, 2)
    write_image(bad)
    with pytest.raises(OVDError, match=r"bad.png has shape \(4, 6, 3\)"):
        read_label_map(record, 2)
    write_map(bad, (0, 1, 2, 255))
    with pytest.raises(OVDError, match="bad.png holds the value 2, but the data set has 2 classes"):
        read_label_map(record, 2)
    with pytest.raises(OVDError, match="24 pixels are more than|6 x 4 pixels are more than"):
        read_label_map(record, 3, max_pixels=23)
    assert (read_label_map(record, 3) == filled((0, 1, 2, 255))).all()
    with pytest.raises(OVDError, match="label_values 'rgb'"):
        read_label_map({**record, "label_values": "rgb"}, 3)


def test_maps_of_16_bits(tmp_path):
    write_map(tmp_path / "x.png", (0, 846, 65535), np.uint16)
    found = read_label_map({"sem_seg_file_name": tmp_path / "x.png"}, 847, 65535)
    assert (found == filled((0, 846, 65535))).all()


def test_later_masks_lie_on_top():
    def square(x0, y0, x1, y1, number):
        return {"segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]], "class": number}

    masks = [square(0, 0, 4, 4, 5), square(2, 0, 6, 2, 7), square(3, 1, 5, 3, None)]
    expected = np.zeros(SHAPE, int)
    expected[0:4, 0:4] = 5
    expected[0:2, 2:6] = 7
    expected[1:3, 3:5] = 255
    assert (paint_masks(masks, SHAPE) == expected).all()
