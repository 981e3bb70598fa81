"""Keys of what is trained of a model that is trained already: MODEL.TUNE."""

from detectron2.config import CfgNode as CN

from ovd_d2.config.rules import ABOVE_0, COUNT_OR_0, NAMES, Rows, empty_or

RULES: Rows = (  # rule, prefix, keys below it
    (empty_or(NAMES), "MODEL.TUNE.", "FROZEN ONLY"),
    (COUNT_OR_0, "MODEL.TUNE.LORA.", "RANK"),
    (ABOVE_0, "MODEL.TUNE.LORA.", "ALPHA"),
    (NAMES, "MODEL.TUNE.LORA.", "LAYERS"),
)  # fmt: skip


def add_keys(cfg: CN) -> None:
    """Adds the group to ``cfg``, in place."""
    _C = cfg.MODEL.TUNE = CN()
    # Parameters whose names begin with one of these stay as they are (["backbone."]), and so do the
    # statistics of their batch norms; dropout inside of them is off.
    _C.FROZEN = []
    # Nothing but parameters whose names begin with one of these is trained; [] for all.
    _C.ONLY = []
    # Adapters of low rank in attention layers (Hu et al. 2021, "LoRA"), by peft: they train, and of
    # the rest only what ONLY names. Checkpoints hold the sum of weights and adapters under the
    # usual names, so that whoever opens them needs no peft. RANK 0: none. The adapters count
    # ALPHA / RANK times. LAYERS: last words of the names of the linear layers that get one.
    _C.LORA = CN()
    _C.LORA.RANK = 0
    _C.LORA.ALPHA = 16.0
    _C.LORA.LAYERS = [
        "qkv", "proj", "query", "key", "value", "q_proj", "k_proj", "v_proj", "out_proj",
        "value_proj", "output_proj", "vision_proj", "text_proj", "values_vision_proj",
        "values_text_proj", "out_vision_proj", "out_text_proj",
    ]  # fmt: skip
