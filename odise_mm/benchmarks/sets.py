"""Test sets by name, and the checks that run before a test starts."""

from __future__ import annotations

import copy
import inspect
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from odise_mm.config.changing import complete_config, set_data_root
from odise_mm.config.checking import check_config
from odise_mm.config.walking import inner_configs, pipeline_users
from odise_mm.datasets.class_names import resolve_subsets, resolve_vocabulary
from odise_mm.datasets.wrappers import check_same_classes
from odise_mm.errors import ConfigError, DatasetError
from odise_mm.registry import MODELS
from odise_mm.vocabulary import Vocabulary

# Name of a built-in vocabulary or test set -> the label file that the published models were tested
# with. These files come with OpenSeg and with the published code of ODISE; there are no others.
LABEL_FILES: dict[str, str] = {
    "coco": "coco_panoptic_with_prompt_eng.txt",
    "ade20k": "ade20k_150_with_prompt_eng.txt",
    "ade847": "ade20k_847_with_prompt_eng.txt",
    "pc59": "pascal_context_59_with_prompt_eng.txt",
    "pc459": "pascal_context_459_with_prompt_eng.txt",
    "voc21": "pascal_voc_21_with_prompt_eng.txt",
    "lvis": "lvis_1203_with_prompt_eng.txt",
}
# The same for the published code of FC-CLIP, OVRCOAT and MAFT+, where its files have other names or
# belong to more sets. VOC 20 is the list of 21 without its first class, "background".
FC_CLIP_LABEL_FILES: dict[str, str] = {
    "pc59": "pascal_ctx_59_with_prompt_eng.txt",
    "pc459": "pascal_ctx_459_with_prompt_eng.txt",
    "voc20": "pascal_voc_21_with_prompt_eng.txt",
    "cityscapes": "cityscapes_with_prompt_eng.txt",
    "mapillary": "mapillary_vistas_with_prompt_eng.txt",
}
# Name of a test set -> command that prepares it, below tools/dataset_converters/.
CONVERTERS: dict[str, str] = {
    "coco": "coco.py data/coco",
    "ade20k": "ade20k.py data/ADEChallengeData2016",
    "ade847": "ade20k_full.py data/ADE20K_2021_17_01",
    "pc59": "pascal_context.py data/VOCdevkit/VOC2010",
    "pc459": "pascal_context.py data/VOCdevkit/VOC2010",
    "voc20": "voc.py data/VOCdevkit/VOC2012",
    "voc21": "voc.py data/VOCdevkit/VOC2012",
    "cityscapes": "cityscapes.py data/cityscapes",
    "mapillary": "mapillary.py data/mapillary",
    "lvis": "lvis.py data/lvis --coco data/coco",
    "uvo": "uvo.py data/uvo",
}
_KEYS = ("test_dataloader", "test_evaluator", "test_cfg")
_TRAINING_KEYS = (
    "train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler", "auto_scale_lr",
    "val_dataloader", "val_evaluator", "val_cfg", "load_from",
)  # fmt: skip


@dataclass(frozen=True)
class BenchmarkSet:
    """A test set with its complete config.

    Attributes:
        name: Name of the test set.
        cfg: Config of the model and the test set, for a runner.
        data_root: Folder that replaces ``data/`` in configs.
    """

    name: str
    cfg: Config
    data_root: str = "data"

    @property
    def dataset(self) -> dict[str, Any]:
        """Config of the dataset; the outermost wrapper if there are wrappers."""
        return self.cfg.test_dataloader.dataset

    @property
    def datasets(self) -> list[dict[str, Any]]:
        """Configs of all datasets inside the wrappers."""
        return [each for _, each, wraps in inner_configs(self.dataset, "") if not wraps]

    def files(self) -> Iterator[str]:
        """Yield the files and folders that the config names."""
        for dataset in self.datasets:
            root = dataset.get("data_root") or ""
            for name in (dataset.get("ann_file"), *(dataset.get("data_prefix") or {}).values()):
                if name:
                    yield os.path.join(root, name)
            name = dataset.get("vocabulary")
            if isinstance(name, str) and (os.sep in name or name.endswith((".txt", ".json"))):
                yield name if os.path.isfile(name) else os.path.join(root, name)
        evaluators = self.cfg.test_evaluator
        for metric in evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]:
            if metric.get("ann_file"):
                yield metric["ann_file"]

    def how_to_prepare(self) -> str:
        """Return a hint on how to prepare the files of this test set."""
        elsewhere = "use --data-root if your data is not in data/; see docs/datasets.md"
        if self.name not in CONVERTERS:
            return elsewhere
        command = CONVERTERS[self.name].replace("data/", f"{self.data_root.rstrip('/')}/")
        return f"prepare it with `python tools/dataset_converters/{command}`; {elsewhere}"

    def check(self) -> None:
        """Check files, config and class names, before anything slow runs.

        Raises:
            ConfigError: See :func:`odise_mm.config.checking.check_config`.
            DeviceError: See :func:`odise_mm.config.checking.check_config`.
            DatasetError: A file is missing (the message says how to prepare it), a label file has
                other classes or another order, or a subset has classes that are not in the dataset.
            VocabularyError: A file of class names cannot be read.
        """
        for file in self.files():
            if not os.path.exists(file):
                raise DatasetError(f"{self.name}: no file {file}; {self.how_to_prepare()}")
        check_config(complete_config(self.cfg))
        first, *others = ((each, self._check_names(each)) for each in self.datasets)
        for dataset, vocabulary in others:
            check_same_classes(first[1], vocabulary, _name(first[0]), _name(dataset))

    def _check_names(self, dataset: dict[str, Any]) -> Vocabulary:
        arguments = dataset.get("class_agnostic", False), dataset.get("data_root")
        own, _ = resolve_vocabulary(dataset.get("vocabulary"), None, *arguments)
        resolve_subsets(dataset.get("subsets"), own, dataset.get("data_root"))
        label_file = dataset.get("label_file")
        if label_file is None:
            return own
        renamed, _ = resolve_vocabulary(dataset.get("vocabulary"), label_file, *arguments)
        _check_order(self.name, own, renamed, label_file)
        return renamed


def known_sets() -> list[str]:
    """Return the names of all test sets, those with published label files first."""
    found = _configs()
    return [n for n in LABEL_FILES if n in found] + sorted(found.keys() - LABEL_FILES.keys())


def make_benchmark_sets(
    cfg: Config,
    names: Sequence[str] | None = None,
    *,
    data_root: str | os.PathLike | None = None,
    label_files: str | os.PathLike | None = None,
    limit: int | None = None,
) -> list[BenchmarkSet]:
    """Make the test sets for a config's model.

    Args:
        cfg: Config of the model. Its training and validation settings are dropped.
        names: Names of test sets, see :func:`known_sets`, or config files. Defaults to the test
            set of ``cfg``.
        data_root: Folder that replaces ``data/`` in configs.
        label_files: Folder of label files, named as in :data:`LABEL_FILES` and
            :data:`FC_CLIP_LABEL_FILES`, or ``NAME.txt``. They replace the built-in synonyms of the
            test sets and of the training vocabulary. Or the label file of the only test set; the
            training vocabulary is then that of the config.
        limit: Use only the first images, at most this many.

    Raises:
        ConfigError: A name is unknown, or there is no test set.
        DatasetError: ``label_files`` has no file for a test set, or is a file for several sets.
    """
    sets = [_from_config(cfg)] if names is None else [_from_name(cfg, n) for n in names]
    if data_root is not None:
        sets = [replace(test_set, data_root=os.fspath(data_root)) for test_set in sets]
    if label_files is not None and os.path.isfile(label_files) and len(sets) > 1:
        raise DatasetError(
            f"{os.fspath(label_files)} is one label file for {len(sets)} test sets; pass a folder "
            "of label files, or test one set at a time"
        )
    for test_set in sets:
        for key in _TRAINING_KEYS:
            test_set.cfg.pop(key, None)
        hook = (test_set.cfg.get("default_hooks") or {}).get("checkpoint")
        if isinstance(hook, dict):  # refers to the results of validation
            hook.pop("save_best", None)
        if label_files is not None:
            _use_label_files(test_set, Path(label_files))
        if data_root is not None:
            set_data_root(test_set.cfg, data_root)
        if limit is not None:
            _limit(test_set, limit)
    return sets


def _configs() -> dict[str, list[Path]]:
    """Find the config files of each test set, in the package and the working directory."""
    from odise_mm.config.finding import config_folders

    found: dict[str, list[Path]] = {}
    for folder in config_folders():
        for path in sorted((folder / "_base_" / "datasets").glob("*.py")):
            found.setdefault(path.stem, []).append(path)
    return found


def _own_configs() -> dict[str, Path]:
    from odise_mm.config.finding import own_config_folders

    folders = [folder / "_base_" / "datasets" for folder in reversed(own_config_folders())]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.py"))}


def _file_of(name: str) -> Path:
    """Find the config file of a test set that the user named."""
    if name.endswith(".py") and os.path.isfile(name):
        return Path(name)
    own, found = _own_configs().get(name), _configs().get(name)
    if found is None:
        raise ConfigError(
            f"unknown test set {name!r}; available: {', '.join(known_sets())}, or the path of a "
            "config"
        )
    if own not in (None, found[0]):
        raise ConfigError(
            f"test set {name!r} is ambiguous: {found[0]} and the package's {own}; pass the path of "
            "one of them"
        )
    return found[0]


def _from_name(cfg: Config, name: str) -> BenchmarkSet:
    path = _file_of(name)
    name = path.stem
    data = Config.fromfile(path)
    cfg = cfg.copy()
    for key in _KEYS:
        cfg[key] = data[key]
    # The model's test pipeline, if there is one, replaces the dataset's default pipeline, because
    # the model was trained for it. Pipelines that a dataset defines for itself stay.
    for _, dataset in pipeline_users(cfg, "test"):
        if "pipeline" in dataset and dataset["pipeline"] == data.get("test_pipeline"):
            del dataset["pipeline"]
    if "test_pipeline" not in cfg and "test_pipeline" in data:
        cfg.test_pipeline = data.test_pipeline
    _set_scale(cfg, name)
    return BenchmarkSet(name, cfg)


def _set_scale(cfg: Config, name: str) -> None:
    """Resize the images of a test set as ``test_scales`` of the config says.

    It maps names of test sets, and "default" for all others, to the ``scale`` that the method was
    tested with. A config whose ``test_pipeline`` has another scale than these keeps it: the user
    chose it.

    Args:
        cfg: Config of the model with the dataset of the test set; changed in place.
        name: Name of the test set.
    """
    scales = {key: tuple(scale) for key, scale in (cfg.get("test_scales") or {}).items()}
    scale = scales.get(name, scales.get("default"))
    pipeline = copy.deepcopy(cfg.get("test_pipeline") or [])  # the sets of a run share it
    steps = [step for step in pipeline if "scale" in step]
    if scale is None or not all(tuple(step["scale"]) in scales.values() for step in steps):
        return
    for step in steps:
        if tuple(step["scale"]) != scale:
            step["scale"] = scale
            text = f"{name}: images are resized to a scale of {scale} (test_scales of the config)"
            print_log(text, logger="current")
    cfg.test_pipeline = pipeline


def _from_config(cfg: Config) -> BenchmarkSet:
    if not cfg.get("test_dataloader"):
        raise ConfigError(
            f"{cfg.filename or 'config'}: the config has no test set; choose some with --datasets: "
            f"{', '.join(known_sets())}"
        )
    dataset = _images_and_names(cfg)
    # Only the package's configs: those in the working directory are programs that the user has not
    # named.
    for name, path in _own_configs().items():
        if _images_and_names(Config.fromfile(path)) == dataset:
            return BenchmarkSet(name, cfg.copy())
    return BenchmarkSet(Path(cfg.filename or "test").stem, cfg.copy())


def _images_and_names(cfg: Config) -> dict[str, Any]:
    """Return the dataset's settings without those that do not identify it."""
    ignored = ("subsets", "pipeline")
    return {key: v for key, v in cfg.test_dataloader.dataset.items() if key not in ignored}


def _limit(test_set: BenchmarkSet, number: int) -> None:
    if test_set.datasets[0] is test_set.dataset:
        test_set.dataset["indices"] = number
    else:
        wrapped = dict(type="FirstImages", dataset=test_set.dataset, number=number)
        test_set.cfg.test_dataloader.dataset = wrapped


def _name(dataset: dict[str, Any]) -> str:
    """Return a path that identifies a dataset in messages."""
    file = dataset.get("ann_file") or next(iter((dataset.get("data_prefix") or {}).values()), "")
    return os.path.join(dataset.get("data_root") or "", file)


def _use_label_files(test_set: BenchmarkSet, folder: Path) -> None:
    for dataset in test_set.datasets:
        if not dataset.get("class_agnostic"):  # its only class is "object"
            dataset["label_file"] = str(_label_file(folder, test_set.name))
    if folder.is_file():
        return
    model = test_set.cfg.model
    ensemble = model.get("ensemble") or {}
    trained = ensemble.get("train_vocabulary")
    if trained is None and _takes_names(ensemble):
        trained = model.get("vocabulary")  # the default that segmentors fill in
    if isinstance(trained, str) and not os.path.isfile(trained):
        ensemble["train_vocabulary"] = str(_label_file(folder, trained))


def _takes_names(ensemble: dict[str, Any]) -> bool:
    kind = ensemble.get("type")
    cls = MODELS.get(kind) if isinstance(kind, str) else kind
    return cls is not None and "train_vocabulary" in inspect.signature(cls).parameters


def _check_order(name: str, own: Vocabulary, renamed: Vocabulary, label_file: str) -> None:
    """Check that a label file has the order of the dataset's classes, which it names by position.

    Raises:
        DatasetError: Most classes have no name in common. A few such classes give a warning.
    """
    different = []
    for index, names in enumerate(renamed.synonyms):
        known = {_key(text) for text in (*own.synonyms[index], own.source_names[index])}
        if not known & {_key(text) for text in names}:
            different.append(index)
    if not different:
        return
    first = different[0]
    message = (
        f"{name}: {len(different)} of {len(own)} classes have no name in common with the class at "
        f"the same position of {label_file} (first: class {first} is {own.names[first]!r} in the "
        f"dataset and {renamed.names[first]!r} in the file)"
    )
    if 2 * len(different) > len(own):
        hint = "is it the label file of another dataset?"
        if name == "ade847":  # the user's copy of the data determines its classes
            hint = (
                "prepare the dataset with its classes in the published order: --classes of "
                "tools/dataset_converters/ade20k_full.py"
            )
        raise DatasetError(f"{message}; {hint}")
    print_log(message, logger="current", level=logging.WARNING)


def _key(text: str) -> str:
    """Return a name for comparison, without case, spaces and punctuation."""
    return "".join(filter(str.isalnum, text.casefold()))


def _label_file(folder: Path, name: str) -> Path:
    if folder.is_file():
        return folder
    candidates = [LABEL_FILES.get(name), FC_CLIP_LABEL_FILES.get(name), f"{name}.txt"]
    candidates = [file for file in candidates if file is not None]
    for file in candidates:
        if (folder / file).is_file():
            return folder / file
    raise DatasetError(
        f"no label file for {name} in {folder} (looked for {', '.join(candidates)}); add one "
        "with lines `id:name,name`, pass the file of a single test set instead of the folder, or "
        "test this dataset without --label-files"
    )
