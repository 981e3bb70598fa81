"""Trained models of others and of ours: where they are, what is known of them, how they come here.

Nothing is downloaded but by :func:`~ovd_d2.jobs.download_model.download_model`.
"""

from .download import fetch
from .entries import Entry, Result, find_entry, read_entries, zoo_names
from .places import (
    EMBEDDINGS,
    convert_command,
    download_path,
    model_path,
    models_folder,
    state,
)

__all__ = [
    "EMBEDDINGS",
    "Entry",
    "Result",
    "convert_command",
    "download_path",
    "fetch",
    "find_entry",
    "model_path",
    "models_folder",
    "read_entries",
    "state",
    "zoo_names",
]
