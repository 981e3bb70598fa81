"""Nouns of a caption in sentences of their own (Xu et al. 2022, "GroupViT", section 3.2).

Letter: P texts of an image.
"""

from typing import Any

import numpy as np

from ovd_d2.errors import OVDError
from ovd_d2.language.nouns import noun_finder
from ovd_d2.language.prompts import PROMPT_SETS
from ovd_d2.structures import TokenSpans


class PromptedNouns:
    """Draws P of a caption's nouns and puts each into one of CLIP's 80 templates."""

    def __init__(self, count: int, finder: str = "auto") -> None:
        """
        Args:
            count: P.
            finder: how nouns are found, see ``noun_finder``.

        Raises:
            OVDError: spaCy or its pipeline is not there.
        """
        self.count = count
        self._find = noun_finder(finder)
        self._templates = PROMPT_SETS["imagenet80"]

    def __call__(self, record: dict[str, Any]) -> list[str]:
        """
        Args:
            record: of a pair, with ``file_name`` and ``caption``.

        Returns:
            P texts: nouns at places of the caption that are drawn without replacement, as they are
            written, each in a template drawn for it; the caption where there are too few.

        Raises:
            OVDError: a record without a caption.
        """
        caption = record.get("caption")
        caption = caption.caption if isinstance(caption, TokenSpans) else caption
        if not isinstance(caption, str):
            raise OVDError(
                f"{record.get('file_name', 'A record')} has no caption to find nouns in: set "
                "INPUT.PAIRS.PROMPTED_NOUNS 0, or name image-text pairs."
            )
        nouns = self._find(caption)
        count = min(len(nouns), self.count)
        rng = np.random  # the global generator: the loader seeds it for every sample
        places = rng.choice(len(nouns), count, replace=False) if count else []
        chosen = rng.choice(len(self._templates), count)
        texts = [self._templates[t].replace("{}", nouns[n]) for t, n in zip(chosen, places)]
        return texts + [caption] * (self.count - count)
