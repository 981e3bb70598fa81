"""Keys of the vocabulary and of heads that score against class embeddings: MODEL.OPEN_VOCAB."""

from detectron2.config import CfgNode as CN

from ovd_d2.config.rules import ABOVE_0, COUNT, COUNT_OR_0, NAMES, NUMBER, Rows, empty_or

RULES: Rows = (  # rule, prefix, keys below it
    (empty_or(NAMES), "MODEL.OPEN_VOCAB.", "REGION_TASKS"),
    (COUNT_OR_0, "MODEL.OPEN_VOCAB.", "PROJECTION_HIDDEN"),
    (COUNT, "MODEL.OPEN_VOCAB.", "EMBED_DIM"),
    (ABOVE_0, "MODEL.OPEN_VOCAB.", "LOGIT_SCALE"),
    (NUMBER, "MODEL.OPEN_VOCAB.", "BIAS_INIT"),
)  # fmt: skip


def add_keys(cfg: CN) -> None:
    """Adds the group to ``cfg``, in place."""
    _C = cfg.MODEL.OPEN_VOCAB = CN()
    # What names the classes: "dataset:NAME" (its metadata), a .txt or .json file, a comma-separated
    # list, "everything" (the names of LVIS and Objects365), "" for those of DATASETS.TRAIN[0], or
    # "later" for none before set_vocabulary is called; nothing is embedded then.
    _C.VOCABULARY = ""
    # (K, D) class embeddings from a file (.npy of Detic / object-centric-ovd, or .safetensors);
    # "" computes them with TEXT_ENCODER and PROMPTS and caches them.
    _C.TEXT_EMBEDDINGS = ""
    # One of "openai-clip:NAME_OR_FILE", "open_clip:MODEL:TAG_OR_FILE", "hf:NAME_OR_FOLDER",
    # "exported:FILE" (a teacher of yours), "mini-teacher" and "minilm".
    _C.TEXT_ENCODER = "openai-clip:ViT-B/32"
    # "name", "photo", "article_photo", "vild63", "vild63_this_is", "imagenet80", "imagenet7", a
    # template such as "a drawing of a {}", or a text file of templates.
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
    # First values of weight transfer's layers: "released", PyTorch's, as in the public code, which
    # know nothing of the distilled projection, or "distilled" (not the paper's): the generated one
    # starts as the distilled one, up to a half of its rank, and skip as its bias.
    _C.TRANSFER_START = "released"
    # Which projection of weight transfer the losses of MODEL.REGION_DISTILLATION see: "frozen",
    # the distilled one, as in the public code, where they train the layers below alone, or
    # "generated" (not the paper's): the one that scores classes, which learns from them too.
    _C.TRANSFER_TEACHER = "frozen"
    # False (ViLD-image): no classification loss, the head learns from MODEL.REGION_DISTILLATION
    # alone; the score of a region is sqrt(softmax over the names x RPN objectness).
    _C.TRAIN_CLASSIFIER = True
    # The score of a region is sqrt(its probability x the RPN's objectness), as in CenterNet2 and
    # Detic on LVIS.
    _C.MULT_PROPOSAL_SCORE = False
    # Names in ovd_d2.modeling.roi_heads.REGION_TASK_REGISTRY: losses of one's own on regions,
    # beside those that MODEL.REGION_DISTILLATION, IMAGE_BRANCH and IMAGE_LABELS ask for.
    _C.REGION_TASKS = []
