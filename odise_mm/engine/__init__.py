"""Runner, loops, hooks and optimizer wrappers."""

from odise_mm.engine.hooks import (
    AtomicCheckpointHook,
    FeatureCacheHook,
    FiniteLossHook,
    IterationSeedHook,
)
from odise_mm.engine.loops import OpenVocabTestLoop, OpenVocabTrainLoop, OpenVocabValLoop
from odise_mm.engine.optim import BFloat16OptimWrapper, MuonAdamW, TrainedParametersConstructor
from odise_mm.engine.runner import OpenVocabRunner

__all__ = [
    "AtomicCheckpointHook",
    "BFloat16OptimWrapper",
    "FeatureCacheHook",
    "FiniteLossHook",
    "IterationSeedHook",
    "MuonAdamW",
    "OpenVocabRunner",
    "OpenVocabTestLoop",
    "OpenVocabTrainLoop",
    "OpenVocabValLoop",
    "TrainedParametersConstructor",
]
