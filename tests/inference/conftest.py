from random_models import checkpoint, config, exported, text_cache, text_cache_folder

__all__ = ["checkpoint", "config", "exported", "text_cache", "text_cache_folder"]
