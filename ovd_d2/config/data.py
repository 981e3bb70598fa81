"""Keys of data sets, mappers and loaders: DATASETS, INPUT, DATALOADER."""

from detectron2.config import CfgNode as CN

from ovd_d2.config.rules import (
    ABOVE_0,
    COUNT,
    COUNT_OR_0,
    SHARE,
    Rows,
    Rule,
    at_least,
    each,
    one_of,
)

RULES: Rows = (  # rule, prefix, keys below it
    (SHARE, "DATALOADER.", "MAX_CORRUPT_FRACTION"),
    (COUNT_OR_0, "DATASETS.", "REGIONS_PER_IMAGE"),
    (COUNT_OR_0, "INPUT.", "MAX_PIXELS PAIRS.IMAGE_SIZE PAIRS.PROMPTED_NOUNS"),
    (COUNT, "INPUT.SCALE_JITTER.", "SIZE"),
    (ABOVE_0, "INPUT.SCALE_JITTER.", "MIN_SCALE MAX_SCALE"),
    (SHARE, "INPUT.RESIZE_CROP.", "PROB"),
    (each(COUNT), "INPUT.RESIZE_CROP.", "SHORT_SIDES"),
    (each(COUNT, 2), "INPUT.RESIZE_CROP.", "SIDES"),
    (COUNT_OR_0, "INPUT.", "SQUARE"),
    (Rule(lambda v: at_least(0).good(v) and v <= 255, "0 to 255"), "INPUT.SCALE_JITTER.",
     "PAD_VALUE"),
    (each(ABOVE_0, 2), "INPUT.PAIRS.", "BOX_SCALE"),
    (each(SHARE, 2), "INPUT.PAIRS.", "CROP_AREA"),
    (at_least(0), "INPUT.PAIRS.", "BOX_SHIFT COLOR_JITTER"),
    (SHARE, "INPUT.PAIRS.", "GRAY RANDOM_ERASING"),
    (one_of("", "crop", "squash"), "INPUT.PAIRS.", "RESIZE"),
    (one_of("keep", "skip", "refuse"), "INPUT.PAIRS.", "WITHOUT_NOUN_PHRASE"),
    (one_of("refuse", "skip"), "INPUT.PAIRS.", "DAMAGED_SHARDS"),
)  # fmt: skip


def add_keys(cfg: CN) -> None:
    """Adds the group to ``cfg``, in place."""
    # Large-scale jitter (ViLD, Detic: 0.1-2.0): scale the image so that it would fit into a square
    # of SIZE pixels times a random factor, then crop or pad to that square. Replaces
    # MIN_SIZE_TRAIN; flips stay with INPUT.RANDOM_FLIP. What is padded gets PAD_VALUE (0: black).
    cfg.INPUT.SCALE_JITTER = CN(
        {"ENABLED": False, "MIN_SCALE": 0.1, "MAX_SCALE": 2.0, "SIZE": 1024, "PAD_VALUE": 128.0}
    )
    # DETR's crop, with probability PROB: the short side becomes one of SHORT_SIDES, and a crop is
    # cut out whose sides have SIDES pixels, (least, most). One that misses a box is drawn again, up
    # to 100 times. MIN_SIZE_TRAIN comes after it.
    cfg.INPUT.RESIZE_CROP = CN({"PROB": 0.0, "SHORT_SIDES": [400, 500, 600], "SIDES": [384, 1333]})
    # For INPUT.MAPPER SemanticSegmentationMapper: images and label maps become a square of so many
    # pixels, whatever their shape, in training and test (few-shot segmentation: 480); 0: they keep
    # it. Few-shot results are compared in that square, others in the image as it is.
    cfg.INPUT.SQUARE = 0
    # [["dataset", factor], ...] for DATALOADER.SAMPLER_TRAIN Weighted(Category)TrainingSampler;
    # Detectron2's samplers read it, but its defaults lack it.
    cfg.DATASETS.TRAIN_REPEAT_FACTOR = []
    # Folder of the region store (`ovd regions build`) of the training images, "" for none.
    cfg.DATASETS.REGION_STORE = ""
    # At most this many of its regions per image and step; 0 all (ViLD 300, RKD 5).
    cfg.DATASETS.REGIONS_PER_IMAGE = 300
    # Which: "random", drawn anew at every step, or the "first" of the store, its best (RKD).
    cfg.DATASETS.REGIONS_CHOICE = "random"
    # Names of classes that are novel, or .txt and .json files of such names: held out of training,
    # boxes and all, and counted in AP_novel. Empty: the data sets' own is_novel says.
    cfg.DATASETS.NOVEL_NAMES = []
    # Python files or modules that register data sets. They are run, so train_net.py takes them
    # from the command line only (--register, or this key), and from a yaml with --trust.
    cfg.DATASETS.REGISTER = []
    # Training data of several kinds, mixed; empty: DATASETS.TRAIN alone. A list of mappings: NAME;
    # OPTS, [KEY, value, ...], keys of the data (DATASETS.TRAIN, DATASETS.REGION_STORE, INPUT.*,
    # DATALOADER.*, SOLVER.IMS_PER_BATCH, ...) that differ for this source; and for "alternate"
    # RATIO (default 1), which counts batches, not images. Classes are still those of VOCABULARY, or
    # of DATASETS.TRAIN outside.
    cfg.DATASETS.SOURCES = []
    # "alternate": each batch is of one source, as often as its RATIO says; "together": each batch
    # is one batch of every source, one behind the other.
    cfg.DATASETS.MIXING = "alternate"
    # Name in ovd_d2.data.mappers.detection.DATASET_MAPPER_REGISTRY: what makes samples of records.
    # Semantic data sets are read by SemanticSegmentationMapper where this is the default, and in
    # tests also where it is a mapper of captions.
    cfg.INPUT.MAPPER = "OpenVocabDatasetMapper"
    # Images with more pixels are refused before decoding (0: no limit).
    cfg.INPUT.MAX_PIXELS = 50_000_000
    # For INPUT.MAPPER GroundingMapper: "left" and "right" change places in the caption of an image
    # that is mirrored.
    cfg.INPUT.SWAP_LEFT_RIGHT = True
    # Corrupt images are skipped, counted and named; training stops when more than this share of
    # the training images has turned out corrupt.
    cfg.DATALOADER.MAX_CORRUPT_FRACTION = 0.01
    _add_keys_of_pairs(cfg)


def _add_keys_of_pairs(cfg: CN) -> None:
    # For INPUT.MAPPER ImageTextPairMapper. BOX_SCALE: side of the crop over the side of the box,
    # drawn log-uniformly between the two; BOX_SHIFT: its centre moves by up to this share of the
    # side; CROP_AREA: share of a whole image (a pair without box) that is kept, drawn uniformly;
    # COLOR_JITTER: strength of brightness, contrast and saturation changes; GRAY: probability of a
    # grey image. IMAGE_SIZE: side of the training image, 0: MODEL.CLIP.IMAGE_SIZE; RESIZE: "crop"
    # or "squash" of a whole image, "": MODEL.CLIP.RESIZE.
    # NOUN_PHRASES: samples get `concepts`, the caption and its noun phrases, found by "auto" (spaCy
    # where it is installed), "stop-words" or a pipeline of spaCy; "": none. WITHOUT_NOUN_PHRASE: a
    # pair whose caption has none is used with the caption alone ("keep"), is left out, counted and
    # named ("skip"), or stops the training ("refuse").
    # AUTO_AUGMENT: timm's random policies, such as "rand-m9-mstd0.5-inc1" (RandAugment), "": none;
    # RANDOM_ERASING: probability that a rectangle of the image becomes noise (Zhong et al. 2017).
    # PROMPTED_NOUNS: samples get `prompted_nouns`, so many nouns of the caption in sentences of
    # their own (GroupViT: 3), found as NOUNS_BY says: "auto" (the tags of spaCy where it is
    # installed), "stop-words" or a pipeline of spaCy; 0: none.
    # DAMAGED_SHARDS: a tar shard of a range that is missing, or one that is damaged, stops the
    # training ("refuse") or is left out, counted and named ("skip"). Damaged images inside a whole
    # shard are those of DATALOADER.MAX_CORRUPT_FRACTION.
    cfg.INPUT.PAIRS = CN(
        {
            "BOX_SCALE": [1.0, 1.0],
            "BOX_SHIFT": 0.0,
            "CROP_AREA": [0.9, 1.0],
            "COLOR_JITTER": 0.0,
            "GRAY": 0.0,
            "IMAGE_SIZE": 0,
            "RESIZE": "",
            "NOUN_PHRASES": "",
            "WITHOUT_NOUN_PHRASE": "keep",
            "AUTO_AUGMENT": "",
            "RANDOM_ERASING": 0.0,
            "PROMPTED_NOUNS": 0,
            "NOUNS_BY": "auto",
            "DAMAGED_SHARDS": "refuse",
        }
    )
