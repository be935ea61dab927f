"""Backbones, captioners, necks, heads, classifiers and the segmentors that combine them."""

from odise_mm.checkpoints.safe_pickle import allow_training_state
from odise_mm.models.backbones.diffusion.backbone import DiffusionBackbone
from odise_mm.models.backbones.diffusion.condition import Condition
from odise_mm.models.backbones.diffusion.dit import DiTBackbone
from odise_mm.models.backbones.diffusion.taps import Taps
from odise_mm.models.backbones.open_clip_backbone import OpenCLIPBackbone
from odise_mm.models.backbones.timm_backbone import TimmBackbone
from odise_mm.models.classifiers.base import Classifier, ClassPrediction, TrainableClassifier
from odise_mm.models.classifiers.clip_classifiers import (
    CropCLIPClassifier,
    MaskCLIPClassifier,
    PooledCLIPClassifier,
    SoftMaskCLIPClassifier,
)
from odise_mm.models.classifiers.coat_ensemble import CoatEnsemble
from odise_mm.models.classifiers.ensemble import GeometricEnsemble
from odise_mm.models.classifiers.memory import MemoryClassifier
from odise_mm.models.classifiers.open_vocab_classifier import OpenVocabClassifier
from odise_mm.models.classifiers.region_memory import Region, RegionMemory
from odise_mm.models.classifiers.text_adapters import (
    ContentDependentTransfer,
    PseudoText,
    TextAdapter,
)
from odise_mm.models.clip.frozen_clip import FrozenCLIP
from odise_mm.models.clip.text_encoder import TextEncoder
from odise_mm.models.data_preprocessor import ColorPaddingPreprocessor
from odise_mm.models.heads.mask2former_head import MaskPrediction, OpenVocabMask2FormerHead
from odise_mm.models.losses.auxiliary_loss import AuxiliaryLoss, TrainingOutputs
from odise_mm.models.losses.class_loss import OpenVocabCrossEntropyLoss
from odise_mm.models.losses.clip_losses import (
    CLIPCrossEntropyLoss,
    GramDistillationLoss,
    MaskAwareLoss,
    RepresentationCompensationLoss,
)
from odise_mm.models.losses.grounding_loss import GroundingLoss
from odise_mm.models.necks.captioners.blip import BLIPCaptioner
from odise_mm.models.necks.captioners.implicit import EmptyCaptioner, ImplicitCaptioner
from odise_mm.models.necks.captioners.text import (
    CaptionCaptioner,
    HeuristicCaptioner,
    TextCaptioner,
)
from odise_mm.models.necks.feature_projection import FeatureProjection
from odise_mm.models.proposals.base import ImageMaskSource, MaskSource, Proposals
from odise_mm.models.proposals.file_proposals import FileProposals
from odise_mm.models.proposals.sam3_proposals import Sam3Proposals
from odise_mm.models.proposals.sam_proposals import SamProposals
from odise_mm.models.proposals.segmentor_proposals import SegmentorProposals
from odise_mm.models.segmentors.open_vocab_segmentor import OpenVocabSegmentor
from odise_mm.models.segmentors.proposal_segmentor import ProposalSegmentor
from odise_mm.models.segmentors.results import SegmentedImages
from odise_mm.moved import renamed

allow_training_state()
__getattr__ = renamed(__name__)

__all__ = [
    "AuxiliaryLoss",
    "BLIPCaptioner",
    "CLIPCrossEntropyLoss",
    "CaptionCaptioner",
    "ClassPrediction",
    "Classifier",
    "CoatEnsemble",
    "ColorPaddingPreprocessor",
    "Condition",
    "ContentDependentTransfer",
    "CropCLIPClassifier",
    "DiTBackbone",
    "DiffusionBackbone",
    "EmptyCaptioner",
    "FeatureProjection",
    "FileProposals",
    "FrozenCLIP",
    "GeometricEnsemble",
    "GramDistillationLoss",
    "GroundingLoss",
    "HeuristicCaptioner",
    "ImageMaskSource",
    "ImplicitCaptioner",
    "MaskAwareLoss",
    "MaskCLIPClassifier",
    "MaskPrediction",
    "MaskSource",
    "MemoryClassifier",
    "OpenCLIPBackbone",
    "OpenVocabClassifier",
    "OpenVocabCrossEntropyLoss",
    "OpenVocabMask2FormerHead",
    "OpenVocabSegmentor",
    "PooledCLIPClassifier",
    "ProposalSegmentor",
    "Proposals",
    "PseudoText",
    "Sam3Proposals",
    "SamProposals",
    "Region",
    "RegionMemory",
    "RepresentationCompensationLoss",
    "SegmentedImages",
    "SegmentorProposals",
    "SoftMaskCLIPClassifier",
    "Taps",
    "TextAdapter",
    "TextCaptioner",
    "TextEncoder",
    "TimmBackbone",
    "TrainableClassifier",
    "TrainingOutputs",
]
