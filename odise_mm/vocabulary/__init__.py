"""Vocabularies: the classes that a model may predict, with their names.

This package does not depend on models or datasets.
"""

from odise_mm.errors import VocabularyError
from odise_mm.vocabulary.loading import BUILTIN
from odise_mm.vocabulary.vocabulary import Vocabulary

__all__ = ["BUILTIN", "Vocabulary", "VocabularyError"]
