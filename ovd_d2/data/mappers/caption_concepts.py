"""The concepts of an image-text pair: its caption and the noun phrases in it."""

from typing import Any

from ovd_d2.errors import OVDError
from ovd_d2.language.noun_phrases import noun_phrase_finder
from ovd_d2.language.prompts import clean_name
from ovd_d2.structures import TokenSpans

KEEP, SKIP, REFUSE = WITHOUT_NOUN_PHRASE = ("keep", "skip", "refuse")


class LeftOutError(OVDError):
    """A record that is left out of training; the loader puts another in its place.

    Attributes:
        file_name: its image.
        reason: why it is left out.
    """

    def __init__(self, message: str, file_name: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.file_name = file_name
        self.reason = reason


class CaptionConcepts:
    """Finds the concepts of a caption: itself and its noun phrases (DetCLIPv2, section 3.1)."""

    def __init__(self, noun_phrases: str, without_noun_phrase: str = KEEP) -> None:
        """
        Args:
            noun_phrases: how they are found, see ``noun_phrase_finder``.
            without_noun_phrase: a caption without any is a concept alone ("keep"), or its pair is
                left out ("skip") or refused ("refuse").

        Raises:
            OVDError: an unknown choice, or spaCy or its pipeline is not there.
        """
        if without_noun_phrase not in WITHOUT_NOUN_PHRASE:
            raise OVDError(
                f"INPUT.PAIRS.WITHOUT_NOUN_PHRASE is {without_noun_phrase!r}; it must be "
                f"{', '.join(WITHOUT_NOUN_PHRASE[:-1])} or {WITHOUT_NOUN_PHRASE[-1]}."
            )
        self._find = noun_phrase_finder(noun_phrases)
        self._without = without_noun_phrase

    def __call__(self, record: dict[str, Any]) -> list[str]:
        """
        Args:
            record: of a pair, with ``file_name`` and ``caption``.

        Returns:
            the caption, white space as single spaces; then its distinct noun phrases, cleaned by
            ``clean_name``, in order, without one that is the whole caption.

        Raises:
            LeftOutError: "skip" and no noun phrase; or "keep" and not even a letter or a digit.
            OVDError: "refuse" and no noun phrase; or a record without a caption.
        """
        caption = record.get("caption")
        caption = caption.caption if isinstance(caption, TokenSpans) else caption
        if not isinstance(caption, str):
            raise OVDError(
                f"{record['file_name']} has no caption to find noun phrases in: set "
                'INPUT.PAIRS.NOUN_PHRASES "", or name image-text pairs.'
            )
        caption = " ".join(caption.split())
        phrases = [clean_name(caption[begin:end]) for begin, end in self._find(caption)]
        has_words = any(map(str.isalnum, caption))
        if not has_words or (not phrases and self._without != KEEP):
            self._leave_out(record["file_name"], caption, has_words)
        own = clean_name(caption)
        return [caption, *(phrase for phrase in dict.fromkeys(phrases) if phrase != own)]

    def _leave_out(self, file_name: str, caption: str, has_words: bool) -> None:
        shown = TokenSpans(caption).short_caption
        lack = "no noun phrase" if has_words else "neither letter nor digit"
        reason = f"its caption {shown!r} has {lack}"
        if self._without == REFUSE:
            raise OVDError(
                f"Cannot use the pair {file_name}: {reason}. Remove it, or set "
                "INPUT.PAIRS.WITHOUT_NOUN_PHRASE skip."
            )
        raise LeftOutError(f"The pair {file_name} is left out: {reason}.", file_name, reason)
