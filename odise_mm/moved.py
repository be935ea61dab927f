"""Deprecated module names, which work for one more release and warn about their new names."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_CAPTIONERS = "models.necks.captioners"
_DIFFUSION = "models.backbones.diffusion"
_BUILDING = ("config.finding", "config.building", "config.changing", "config.walking")
# Old module -> the modules that have its contents now; all below odise_mm.
MOVED: dict[str, tuple[str, ...]] = {
    "analysis.fusion_sweep": ("analysis.ensemble_sweep",),
    "apis.building": (*_BUILDING, "utils.device", "errors"),
    "apis.memory": ("utils.memory",),
    "datasets.base": (
        "datasets.class_names",
        "datasets.images",
        "datasets.captions",
        "annotations.reading",
        "annotations.coco_json",
        "vocabulary.categories",
    ),
    "datasets.typed_names": ("vocabulary.conventions",),
    "datasets.vocabulary": ("vocabulary", "errors"),
    "datasets.vocabulary_files": ("vocabulary.files",),
    "engine.checkpoints": ("checkpoints.training_state",),
    "engine.config": ("config.checking", "config.changing"),
    "engine.resuming": ("checkpoints.resuming",),
    "evaluation.ground_truth": ("annotations.ground_truth",),
    "evaluation.report": ("benchmarks.report",),
    "evaluation.test_sets": ("benchmarks.sets",),
    "models.backbones.diffusion_arch": (f"{_DIFFUSION}.presets", f"{_DIFFUSION}.arch_from_files"),
    "models.backbones.diffusion_condition": (f"{_DIFFUSION}.condition",),
    "models.backbones.diffusion_files": ("checkpoints.hub",),
    "models.backbones.diffusion_text": (f"{_DIFFUSION}.text",),
    "models.backbones.diffusion_weights": (f"{_DIFFUSION}.weights",),
    "models.necks.blip_captioner": (f"{_CAPTIONERS}.blip",),
    "models.necks.captioner": (f"{_CAPTIONERS}.implicit",),
    "models.necks.text_captioners": (f"{_CAPTIONERS}.text",),
    "models.text": ("models.clip",),
    "models.text.text_cache": ("models.clip.text_cache",),
    "models.text.text_encoder": ("models.clip.text_encoder",),
    "models.training_names": ("checkpoints.training_names",),
    "models.weights": ("checkpoints.published",),
    "models.word_tokenizer": ("models.clip.word_tokenizer",),
    "utils.checkpoint": ("checkpoints.safe_loading", "errors"),
    "utils.coco_json": ("annotations.coco_json",),
    "utils.data_configs": ("config.untrusted",),
    "utils.frozen": ("models.frozen", "config.building"),
    "utils.json_fields": ("annotations.json_fields",),
    "utils.label_maps": ("annotations.label_maps",),
    "utils.made_up": ("models.random_weights",),
    "utils.masks": ("annotations.masks",),
    "utils.names": ("utils.spelling",),
    "utils.panoptic_io": ("annotations.panoptic_io", "utils.files"),
    "utils.safe_pickle": ("checkpoints.safe_pickle",),
    "utils.tiling": ("models.segmentors.tiling",),
    "utils.torch_file": ("checkpoints.torch_file",),
    "utils.unwrapping": ("checkpoints.unwrapping",),
    "utils.weight_folders": ("checkpoints.weight_folders",),
    "visualization.colours": ("visualization.colors",),
}
# Old name -> new name, in the old modules and in the packages that export them.
RENAMED = {
    "MADE_UP_NOTICE": "RANDOM_WEIGHTS_NOTICE",
    "Opinion": "ClassPrediction",
    "class_colours": "class_colors",
    "make_up_weights": "fill_with_random_weights",
    "predict_opinions": "predict_each_classifier",
    "write_picture": "write_image",
}


class _OldNames(MetaPathFinder, Loader):
    """Import hook that creates an old module from the contents of the new ones."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        old = name.removeprefix("odise_mm.")
        if old == name or old not in MOVED:
            return None
        return ModuleSpec(name, self, is_package=any(key.startswith(f"{old}.") for key in MOVED))

    def exec_module(self, module: ModuleType) -> None:
        new = [f"odise_mm.{part}" for part in MOVED[module.__name__.removeprefix("odise_mm.")]]
        warnings.warn(
            f"{module.__name__} has moved to {', '.join(new)}; the old name works for one more "
            "release (CHANGELOG.md lists all renamed modules)",
            FutureWarning,
            stacklevel=2,
        )

        def find(old_name: str) -> Any:
            name = RENAMED.get(old_name, old_name)
            for part in new:
                found = import_module(part)
                if not name.startswith("__") and hasattr(found, name):
                    return getattr(found, name)
            raise AttributeError(f"module {module.__name__!r} has no attribute {old_name!r}")

        module.__getattr__ = find  # type: ignore[method-assign]


def renamed(module: str) -> Callable[[str], Any]:
    """Return a module-level ``__getattr__`` that resolves the old names of renamed objects.

    Args:
        module: ``__name__`` of the module.
    """

    def find(name: str) -> Any:
        new = getattr(sys.modules[module], RENAMED[name], None) if name in RENAMED else None
        if new is None:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(
            f"{module}.{name} has been renamed to {RENAMED[name]}; the old name works for one more "
            "release (CHANGELOG.md lists all renamed objects)",
            FutureWarning,
            stacklevel=2,
        )
        return new

    return find


def offer_old_names() -> None:
    """Make the old modules importable. Existing modules take precedence."""
    if not any(isinstance(finder, _OldNames) for finder in sys.meta_path):
        sys.meta_path.append(_OldNames())
