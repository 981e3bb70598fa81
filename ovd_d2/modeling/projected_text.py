"""Texts of a model with a projector behind its text tower, and class embeddings of them.

Letters: M texts, K classes, P prompts, D embedding width.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from ovd_d2.language import TextEmbeddings, Vocabulary
from ovd_d2.language.prompts import clean_name, fill, load_prompts
from ovd_d2.modeling.concept_text import ConceptText, OwnTextTower


class ProjectedText(ConceptText):
    """M texts -> (M, D) fp32, as they leave the projector: **not** normalised."""

    def __init__(self, tower: nn.Module, projector: nn.Module) -> None:
        """
        Args:
            tower: list of texts -> (M, width), see ``encoders.text_towers``.
            projector: (M, width) -> (M, D).
        """
        super().__init__(tower)
        self.projector = projector

    def forward(self, texts: Sequence[str]) -> Tensor:
        return self.projector(self.tower(list(texts))).float()


class PromptEnsemble(OwnTextTower):
    """Class embeddings by the model's own text side: the mean over a class's prompts as they leave
    the projector, normalised after that."""

    def __init__(self, text: ProjectedText, prompts: str, use_synonyms: bool = False) -> None:
        """
        Args:
            text: the text side; it stays a part of the model.
            prompts: see ``load_prompts``.
            use_synonyms: the mean is over a class's synonyms too.

        Raises:
            OVDError: unusable prompts.
        """
        self._text = text
        self._templates = load_prompts(prompts)
        self._use_synonyms = use_synonyms

    def texts(self, vocabulary: Vocabulary) -> list[list[str]]:
        """Per class what is read of it.

        Raises:
            OVDError: nothing is left of a name when cleaned.
        """
        found = []
        for name, others in zip(vocabulary.names, vocabulary.synonyms):
            names = [name, *(others if self._use_synonyms else ())]
            distinct = dict.fromkeys(map(clean_name, names))
            found.append([fill(template, one) for one in distinct for template in self._templates])
        return found

    def embed(self, vocabulary: Vocabulary) -> TextEmbeddings:
        """See :class:`~ovd_d2.language.ClassEmbedder`."""
        texts = self.texts(vocabulary)
        rows = self._text.encode([text for of_class in texts for text in of_class])
        sums = rows.new_zeros(len(texts), rows.shape[1])
        places = [place for place, of_class in enumerate(texts) for _ in of_class]
        sums.index_add_(0, rows.new_tensor(places, dtype=int), rows)  # the norm takes the mean
        return TextEmbeddings(sums, vocabulary.names, self.encoder_id)
