"""Datasets, samplers, transforms and vocabularies."""

from odise_mm.datasets import transforms  # noqa: F401  (fills the registry)
from odise_mm.datasets.instance import InstanceDataset
from odise_mm.datasets.panoptic import PanopticDataset
from odise_mm.datasets.samplers import SeededSampler
from odise_mm.datasets.seeding import SeededIndex
from odise_mm.datasets.semantic import SemanticDataset
from odise_mm.datasets.wrappers import (
    ClassBalancedDataset,
    ConcatDataset,
    FirstImages,
    MultiImageMixDataset,
    RepeatDataset,
)
from odise_mm.errors import VocabularyError
from odise_mm.vocabulary import BUILTIN, Vocabulary

__all__ = [
    "BUILTIN",
    "ClassBalancedDataset",
    "ConcatDataset",
    "FirstImages",
    "InstanceDataset",
    "MultiImageMixDataset",
    "PanopticDataset",
    "RepeatDataset",
    "SeededIndex",
    "SeededSampler",
    "SemanticDataset",
    "Vocabulary",
    "VocabularyError",
]
