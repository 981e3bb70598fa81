from random_models import checkpoint, config, exported, text_cache

__all__ = ["checkpoint", "config", "exported", "text_cache"]
