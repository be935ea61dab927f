"""The test sets that there are configs for, and what has to be there before a test can start."""

from __future__ import annotations

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

# The published models were tested with these lists of names, by the built-in vocabulary's or the
# test set's name. They come with OpenSeg and with the published code; nobody publishes the others.
LABEL_FILES: dict[str, str] = {
    "coco": "coco_panoptic_with_prompt_eng.txt",
    "ade20k": "ade20k_150_with_prompt_eng.txt",
    "ade847": "ade20k_847_with_prompt_eng.txt",
    "pc59": "pascal_context_59_with_prompt_eng.txt",
    "pc459": "pascal_context_459_with_prompt_eng.txt",
    "voc21": "pascal_voc_21_with_prompt_eng.txt",
    "lvis": "lvis_1203_with_prompt_eng.txt",
}
# What prepares a set, below tools/dataset_converters/.
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
    """One test set with the config that a runner tests it with."""

    name: str
    cfg: Config
    data_root: str = "data"
    """The folder that stands for ``data/`` in configs."""

    @property
    def dataset(self) -> dict[str, Any]:
        """The dataset's config; of one made of others, the wrapper's."""
        return self.cfg.test_dataloader.dataset

    @property
    def datasets(self) -> list[dict[str, Any]]:
        """The config of the dataset, or of each one that it is made of; no wrappers."""
        return [each for _, each, wraps in inner_configs(self.dataset, "") if not wraps]

    def files(self) -> Iterator[str]:
        """Files and folders that the config names, as far as they are known without reading."""
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
        """The sentence that tells a user how the files are made."""
        elsewhere = "--data-root names another folder than data/; see docs/datasets.md"
        if self.name not in CONVERTERS:
            return elsewhere
        command = CONVERTERS[self.name].replace("data/", f"{self.data_root.rstrip('/')}/")
        return f"prepare it with `python tools/dataset_converters/{command}`; {elsewhere}"

    def check(self) -> None:
        """Refuse a set that cannot be tested, before anything long runs.

        Raises:
            ConfigError, DeviceError: see :func:`odise_mm.config.checking.check_config`.
            DatasetError: a file is missing (the message says how to make it), or a label file has
                other classes than the set, or in another order; or a subset has classes that the
                set does not have.
            VocabularyError: a file of names that cannot be read.
        """
        for file in self.files():
            if not os.path.exists(file):
                raise DatasetError(f"{self.name}: there is no {file}; {self.how_to_prepare()}")
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
    """Names of all test sets, those with published results first."""
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
    """The sets to test a config's model on, one after another.

    Args:
        cfg: of the model; its training and validation are dropped.
        names: of the test sets, see :func:`known_sets`; None: the one in ``cfg``.
        data_root: the folder that stands for ``data/`` in configs.
        label_files: a folder of lists of names, called as in :data:`LABEL_FILES`, that replace
            the built-in synonyms of the test sets and of the training vocabulary.
        limit: take the first so many images only.

    Raises:
        ConfigError: an unknown name, or no test set at all.
        DatasetError: ``label_files`` has none for a set.
    """
    sets = [_from_config(cfg)] if names is None else [_from_name(cfg, n) for n in names]
    if data_root is not None:
        sets = [replace(test_set, data_root=os.fspath(data_root)) for test_set in sets]
    for test_set in sets:
        for key in _TRAINING_KEYS:
            test_set.cfg.pop(key, None)
        if label_files is not None:
            _use_label_files(test_set, Path(label_files))
        if data_root is not None:
            set_data_root(test_set.cfg, data_root)
        if limit is not None:
            _limit(test_set, limit)
    return sets


def _configs() -> dict[str, list[Path]]:
    """Files by name: the package's own, and one in the working directory's ``configs/``."""
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
    """The config of a test set that the user named."""
    if name.endswith(".py") and os.path.isfile(name):
        return Path(name)
    own, found = _own_configs().get(name), _configs().get(name)
    if found is None:
        raise ConfigError(
            f"no test set {name!r}; there are: {', '.join(known_sets())}; or write the path of a "
            "config"
        )
    if own not in (None, found[0]):
        raise ConfigError(
            f"test set {name!r} is {found[0]} as well as the package's own {own}: write the path "
            "of the one that is meant"
        )
    return found[0]


def _from_name(cfg: Config, name: str) -> BenchmarkSet:
    path = _file_of(name)
    name = path.stem
    data = Config.fromfile(path)
    cfg = cfg.copy()
    for key in _KEYS:
        cfg[key] = data[key]
    # The pipeline is the model's where it has one: what it was trained for. A pipeline that is the
    # dataset's alone stays.
    for _, dataset in pipeline_users(cfg, "test"):
        if "pipeline" in dataset and dataset["pipeline"] == data.get("test_pipeline"):
            del dataset["pipeline"]
    if "test_pipeline" not in cfg and "test_pipeline" in data:
        cfg.test_pipeline = data.test_pipeline
    return BenchmarkSet(name, cfg)


def _from_config(cfg: Config) -> BenchmarkSet:
    if not cfg.get("test_dataloader"):
        raise ConfigError(
            f"{cfg.filename or 'config'}: has no test set; name some with --datasets: "
            f"{', '.join(known_sets())}"
        )
    dataset = _images_and_names(cfg)
    # Files of the working directory are programs that nobody has named here.
    for name, path in _own_configs().items():
        if _images_and_names(Config.fromfile(path)) == dataset:
            return BenchmarkSet(name, cfg.copy())
    return BenchmarkSet(Path(cfg.filename or "test").stem, cfg.copy())


def _images_and_names(cfg: Config) -> dict[str, Any]:
    """What makes a test set; of which classes there are more numbers does not, and the pipeline is
    the model's."""
    ignored = ("subsets", "pipeline")
    return {key: v for key, v in cfg.test_dataloader.dataset.items() if key not in ignored}


def _limit(test_set: BenchmarkSet, number: int) -> None:
    if test_set.datasets[0] is test_set.dataset:
        test_set.dataset["indices"] = number
    else:
        wrapped = dict(type="FirstImages", dataset=test_set.dataset, number=number)
        test_set.cfg.test_dataloader.dataset = wrapped


def _name(dataset: dict[str, Any]) -> str:
    """What tells a dataset from others, for messages."""
    file = dataset.get("ann_file") or next(iter((dataset.get("data_prefix") or {}).values()), "")
    return os.path.join(dataset.get("data_root") or "", file)


def _use_label_files(test_set: BenchmarkSet, folder: Path) -> None:
    for dataset in test_set.datasets:
        if not dataset.get("class_agnostic"):  # else its one name is "object"
            dataset["label_file"] = str(_label_file(folder, test_set.name))
    model = test_set.cfg.model
    ensemble = model.get("ensemble") or {}
    trained = ensemble.get("train_vocabulary")
    if trained is None and _takes_names(ensemble):
        trained = model.get("vocabulary")  # what segmentors fill in
    if isinstance(trained, str) and not os.path.isfile(trained):
        ensemble["train_vocabulary"] = str(_label_file(folder, trained))


def _takes_names(ensemble: dict[str, Any]) -> bool:
    kind = ensemble.get("type")
    cls = MODELS.get(kind) if isinstance(kind, str) else kind
    return cls is not None and "train_vocabulary" in inspect.signature(cls).parameters


def _check_order(name: str, own: Vocabulary, renamed: Vocabulary, label_file: str) -> None:
    """A label file names classes by their place: those of another order would be silently wrong."""
    strangers = []
    for index, names in enumerate(renamed.synonyms):
        known = {_key(text) for text in (*own.synonyms[index], own.source_names[index])}
        if not known & {_key(text) for text in names}:
            strangers.append(index)
    if not strangers:
        return
    first = strangers[0]
    said = (
        f"{name}: {len(strangers)} of {len(own)} classes share no name with the class at their "
        f"place in {label_file} (the first, number {first}: {own.names[first]!r} there is "
        f"{renamed.names[first]!r})"
    )
    if 2 * len(strangers) > len(own):
        hint = "is it that of another set?"
        if name == "ade847":  # whose classes the user's copy of the data decides
            hint = (
                "prepare the set with its classes in the published order: --classes of "
                "tools/dataset_converters/ade20k_full.py"
            )
        raise DatasetError(f"{said}; {hint}")
    print_log(said, logger="current", level=logging.WARNING)


def _key(text: str) -> str:
    """Compared without case, blanks and signs."""
    return "".join(filter(str.isalnum, text.casefold()))


def _label_file(folder: Path, name: str) -> Path:
    candidates = [file for file in (LABEL_FILES.get(name), f"{name}.txt") if file]
    for file in candidates:
        if (folder / file).is_file():
            return folder / file
    raise DatasetError(
        f"no label file for {name} in {folder}: looked for {' and '.join(candidates)}. Put a list "
        "of lines `id:name,name` there, or test this set without --label-files"
    )
