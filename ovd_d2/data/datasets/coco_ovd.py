"""COCO for open-vocabulary detection: 48 base and 17 novel classes (Bansal et al. 2018).

Filtered at load time from the standard instances_train2017.json and instances_val2017.json. The
other 15 classes are unused: they have no boxes in either. Training keeps the images with at least
one base box, and only base boxes; the generalised evaluation keeps the images with base or novel
boxes, and is over base and novel classes.

What the names are that compete is the one difference between two protocols: the 65 base and novel
ones (K = 65), or all 80 of COCO (K = 80), as in the public code of Detic and object-centric-ovd,
where detections of unused classes take places among the 100 of an image and are not scored. Both
are in the order of COCO's category ids.
"""

from collections.abc import Collection
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from ovd_d2.data.datasets.annotation_check import COCO, FileKind
from ovd_d2.data.datasets.annotation_files import check_records, read_annotations
from ovd_d2.data.datasets.annotation_records import coco_records
from ovd_d2.errors import OVDError

README_SECTION = "COCO"

BASE_CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "train", "truck", "boat", "bench", "bird"),
    *("horse", "sheep", "bear", "zebra", "giraffe", "backpack", "handbag", "suitcase", "frisbee"),
    *("skis", "kite", "surfboard", "bottle", "fork", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "pizza", "donut", "chair", "bed", "toilet"),
    *("tv", "laptop", "mouse", "remote", "microwave", "oven", "toaster", "refrigerator"),
    *("book", "clock", "vase", "toothbrush"),
)
NOVEL_CLASSES = (
    *("airplane", "bus", "cat", "dog", "cow", "elephant", "umbrella", "tie", "snowboard"),
    *("skateboard", "cup", "knife", "cake", "couch", "keyboard", "sink", "scissors"),
)
# What LVIS v1 also calls the class that is COCO's by the mapping of lvis-api (coco_to_synset.json).
# RKD looks for these words in captions.
SYNONYMS = {
    "person": ("baby", "child", "boy", "girl", "man", "woman", "human"),
    "bicycle": ("bike",),
    "car": ("auto", "automobile"),
    "airplane": ("aeroplane",),
    "bus": ("autobus", "charabanc", "double-decker", "motorbus", "motorcoach"),
    "train": ("railroad train",),
    "boat": ("ship",),
    "fire hydrant": ("fireplug", "hydrant"),
    "backpack": ("knapsack", "packsack", "rucksack", "haversack"),
    "handbag": ("purse", "pocketbook"),
    "tie": ("necktie",),
    "suitcase": ("baggage", "luggage"),
    "skis": ("ski",),
    "sports ball": ("ball",),
    "baseball glove": ("baseball mitt",),
    "wine glass": ("wineglass",),
    "hot dog": ("sausage",),
    "donut": ("doughnut",),
    "couch": ("sofa", "lounge"),
    "potted plant": ("flowerpot",),
    "tv": ("television set", "tv set"),
    "laptop": ("laptop computer", "notebook computer"),
    "mouse": ("computer mouse",),
    "remote": ("remote control",),
    "keyboard": ("computer keyboard",),
    "cell phone": (
        *("cellular telephone", "cellular phone", "cellphone", "mobile phone", "smart phone"),
    ),
    "microwave": ("microwave oven",),
    "clock": ("timepiece", "timekeeper"),
    "hair drier": ("hair dryer",),
}


def coco_ovd_metadata(*, all_names: bool = False, train: bool = False) -> dict[str, Any]:
    """Metadata of the 65 classes, or of all 80.

    Args:
        all_names: the 15 unused classes are among them.
        train: for the base training split: there unused classes are held out as novel ones are.

    Returns:
        ``thing_classes``, ``synonyms``, ``is_novel`` and ``is_scored`` (False for unused classes)
        of length K, ``thing_dataset_id_to_contiguous_id`` (COCO category id to 0..K - 1) and
        ``readme_section``.
    """
    scored = set(BASE_CLASSES) | set(NOVEL_CLASSES)
    things = sorted((c for c in COCO_CATEGORIES if c["isthing"]), key=lambda c: c["id"])
    categories = [c for c in things if all_names or c["name"] in scored]
    names = [c["name"] for c in categories]
    return {
        "thing_classes": names,
        "synonyms": [[name, *SYNONYMS.get(name, ())] for name in names],
        "is_novel": [n in NOVEL_CLASSES or (train and n not in scored) for n in names],
        "is_scored": [name in scored for name in names],
        "thing_dataset_id_to_contiguous_id": {c["id"]: i for i, c in enumerate(categories)},
        "readme_section": README_SECTION,
    }


def read_coco_json(
    json_file: str,
    category_ids: Collection[int],
    section: str | None = README_SECTION,
    kind: FileKind = COCO,
) -> dict[str, Any]:
    """Reads a COCO instances json and keeps some categories of it.

    Args:
        json_file: in the format of instances_val2017.json.
        category_ids: the categories to keep.
        section: of datasets/README.md that tells how to get the file.
        kind: whether images will be opened.

    Returns:
        The json's content with those categories (ascending ids), their annotations (crowds
        included) and the images that have at least one of them.

    Raises:
        OVDError: the file is missing or broken or lacks one of the categories.
    """
    content = read_annotations(json_file, section, kind)
    categories = {c["id"]: c for c in content["categories"]}
    annotations = [a for a in content["annotations"] if a["category_id"] in category_ids]
    with_annotations = {a["image_id"] for a in annotations}
    images = [i for i in content["images"] if i["id"] in with_annotations]
    missing = sorted(set(category_ids) - set(categories))
    if missing:
        raise OVDError(
            f"{json_file} lacks {len(missing)} of the {len(category_ids)} COCO categories of this "
            f"split (such as id {missing[0]}): use the standard file that section "
            f"'{section}' of datasets/README.md names."
        )
    return {
        **content,
        "categories": [categories[i] for i in sorted(category_ids)],
        "annotations": annotations,
        "images": images,
    }


def load_coco_ovd(
    json_file: str, image_root: str, *, base_only: bool, all_names: bool = False
) -> list[dict[str, Any]]:
    """Records in Detectron2's format from a standard COCO instances json.

    Args:
        json_file: instances_train2017.json or instances_val2017.json.
        image_root: the folder of its images.
        base_only: keep only annotations of base classes (for training).
        all_names: count the classes as :func:`coco_ovd_metadata` does with ``all_names``.

    Returns:
        One dict per image with at least one annotation, in the order of image ids;
        ``category_id`` is in 0..K - 1 and boxes are x, y, width, height in pixels.

    Raises:
        OVDError: the file or the image folder is missing, broken or empty.
    """
    metadata = coco_ovd_metadata(all_names=all_names)
    is_novel, is_scored = metadata["is_novel"], metadata["is_scored"]
    contiguous = metadata["thing_dataset_id_to_contiguous_id"]
    kept = {i: c for i, c in contiguous.items() if is_scored[c] and not (base_only and is_novel[c])}
    content = read_coco_json(json_file, kept)
    records = coco_records(content, image_root, kept)
    check_records(records, json_file, README_SECTION)
    return records


def register_coco_ovd(
    name: str, json_file: str, image_root: str, *, train: bool, all_names: bool = False
) -> None:
    """Registers a base training split (``train``) or a generalised evaluation split, in which 65 or
    (``all_names``) 80 names compete.

    Reads no file.
    """
    DatasetCatalog.register(
        name,
        lambda: load_coco_ovd(json_file, image_root, base_only=train, all_names=all_names),
    )
    MetadataCatalog.get(name).set(
        json_file=json_file,
        image_root=image_root,
        evaluator_type="coco_ovd",
        **coco_ovd_metadata(all_names=all_names, train=train),
    )
