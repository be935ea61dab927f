"""Vocabularies: the names that a model may give, as data.

Nothing here knows of models or datasets.
"""

from odise_mm.errors import VocabularyError
from odise_mm.vocabulary.loading import BUILTIN
from odise_mm.vocabulary.vocabulary import Vocabulary

__all__ = ["BUILTIN", "Vocabulary", "VocabularyError"]
