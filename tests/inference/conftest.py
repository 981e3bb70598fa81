from random_label_maps import label_map_checkpoint, label_map_config, label_map_model
from random_models import checkpoint, config, exported, text_cache, text_cache_folder

__all__ = [
    "checkpoint", "config", "exported", "label_map_checkpoint", "label_map_config",
    "label_map_model", "text_cache", "text_cache_folder",
]  # fmt: skip
