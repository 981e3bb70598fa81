"""Keys of the zero-shot detectors of transformers: MODEL.HUGGINGFACE."""

from detectron2.config import CfgNode as CN

from ovd_d2.config.rules import COUNT, COUNT_OR_0, SHARE, Rows, Rule, one_of

PROMPT = Rule(
    lambda v: v == "" or (v.count("{}") == 1 and v.replace("{article}", "").count("{") == 1),
    "empty, or a sentence with {} for the name",
)
RULES: Rows = (  # rule, prefix, keys below it
    (COUNT, "MODEL.HUGGINGFACE.", "PAIRS_AT_ONCE TOPK_CANDIDATES_TEST MAX_NEGATIVES"),
    (COUNT_OR_0, "MODEL.HUGGINGFACE.", "NAMES_PER_PROMPT"),
    (SHARE, "MODEL.HUGGINGFACE.", "SCORE_THRESH_TEST NMS_THRESH_TEST ALL_NEGATIVES_PROB"),
    (one_of("max", "mean"), "MODEL.HUGGINGFACE.", "CLASS_SCORE"),
    (PROMPT, "MODEL.HUGGINGFACE.", "PROMPT"),
)  # fmt: skip


def add_keys(cfg: CN) -> None:
    """Adds the group to ``cfg``, in place."""
    # For MODEL.META_ARCHITECTURE HuggingFaceDetector. The model's own processor resizes and
    # normalises: INPUT.MIN_SIZE_TEST 0 gives it images as they are.
    _C = cfg.MODEL.HUGGINGFACE = CN()
    # A model on the Hugging Face hub, or a folder that transformers saved: its weights are those
    # of the folder unless MODEL.WEIGHTS names a checkpoint.
    _C.MODEL = ""
    # Sentence around a name for OWL-ViT and OWLv2 ("{}": the bare name); "": "a photo of a {}".
    # The others read lists of bare names.
    _C.PROMPT = ""
    # Grounding DINO reads captions of 256 tokens, OmDet-Turbo tasks of 77: as many names as fit
    # into one, or at most this many (0: no other limit). Names are context for each other there,
    # so scores depend on it. In OWL-ViT and OWLv2 they are not.
    _C.NAMES_PER_PROMPT = 0
    # Grounding DINO: score of a class from those of its tokens, "max" or "mean".
    _C.CLASS_SCORE = "max"
    # Pairs of image and prompt that go through the model together at test time: speed for memory.
    _C.PAIRS_AT_ONCE = 4
    # What becomes a candidate: score, then the best pairs of box and class of each prompt.
    _C.SCORE_THRESH_TEST = 0.05
    _C.TOPK_CANDIDATES_TEST = 1000
    # Boxes of a class with a higher IoU are suppressed. 1: none are; 0: as the family has it
    # (OmDet-Turbo 0.5, others 1).
    _C.NMS_THRESH_TEST = 0.0
    # Training (Grounding DINO): most classes an image does not show in its caption, and how often
    # it has all of them (else a random number).
    _C.MAX_NEGATIVES = 85
    _C.ALL_NEGATIVES_PROB = 0.5
