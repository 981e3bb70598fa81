"""What a request may ask for, and what is said when it asks for more.

Letter: K names.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ovd_d2.errors import OVDError


class TooLargeError(OVDError):
    """More bytes, pixels, names or letters than are taken."""


class BusyError(OVDError):
    """Too many are waiting already."""


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Attributes:
        names: K at most.
        characters: of one name.
        caption: characters of a caption.
        pixels: of a picture, looked at before it is decoded.
        bytes: of an upload, and of every other request.
        waiting: requests that wait for a model while it works on another.
        label_map: names times pixels of a model that gives label maps, 4 bytes each.
        stored: bytes of all uploads together that are kept for pages that are open.
    """

    names: int = 1000
    characters: int = 200
    caption: int = 2000
    pixels: int = 16_000_000
    bytes: int = 20 << 20
    waiting: int = 8
    label_map: int = 500_000_000
    stored: int = 1 << 30

    def wanted_names(self, text: str) -> list[str]:
        """The names in "cat, red mug", each once, in order; [] of an empty text.

        They are names and nothing else: no file and no data set is looked up.

        Raises:
            OVDError: too many, too long, or characters that are no text.
        """
        if len(text) > self.names * (self.characters + 1):
            raise TooLargeError(
                f"The names have {len(text)} characters: give at most {self.names} names of at "
                f"most {self.characters} characters."
            )
        words = (" ".join(part.split()) for part in text.replace("\n", ",").split(","))
        names = list(dict.fromkeys(word for word in words if word))
        if len(names) > self.names:
            raise TooLargeError(f"{len(names)} names: give at most {self.names}.")
        for name in names:
            if len(name) > self.characters:
                raise TooLargeError(
                    f"The name {name[:40]}... has {len(name)} characters: use at most "
                    f"{self.characters}."
                )
        _check_text(names, "names")
        if names and not any(letter.isalnum() for name in names for letter in name):
            raise OVDError("The names hold no letters: write what to look for, as in cat, red mug.")
        return names

    def wanted_caption(self, text: str) -> str:
        """A caption without blanks around it.

        Raises:
            OVDError: it is too long, or holds characters that are no text.
        """
        if len(text) > self.caption:
            raise TooLargeError(
                f"The caption has {len(text)} characters: write at most {self.caption}."
            )
        _check_text([text], "caption")
        return " ".join(text.split())


def _check_text(texts: Iterable[str], what: str) -> None:
    for text in texts:
        if any(ord(letter) < 32 and not letter.isspace() for letter in text):
            raise OVDError(f"The {what} hold control characters: write plain text.")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:  # lone surrogates
            raise OVDError(f"The {what} hold characters that are no text.") from None


def check_threshold(value: float) -> float:
    """``value`` in 0..1; OVDError if it is not."""
    if math.isnan(value) or not 0 <= value <= 1:
        raise OVDError("The threshold must be a number from 0 to 1.")
    return float(value)
