"""Datasets made of others: mmengine's and mmdet's wrappers, with items as reproducible as theirs.

They are registered under the same names. ``mmdet.ConcatDataset``, ``mmengine.RepeatDataset`` and so
on mean these, too, where our registry builds them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmdet.datasets import dataset_wrappers as mmdet
from mmengine.dataset import dataset_wrapper as mmengine
from mmengine.registry import Registry, build_from_cfg

from odise_mm.datasets.seeding import TakesSeeds
from odise_mm.errors import ConfigError, DatasetError
from odise_mm.registry import DATASETS, TRANSFORMS
from odise_mm.utils.display import printable
from odise_mm.vocabulary import Vocabulary

# Of a vocabulary's metainfo; they follow from the vocabulary, or are names in one file only.
_OF_VOCABULARY = ("vocabulary", "classes", "thing_classes", "stuff_classes")


def build_dataset(
    cfg: Mapping[str, Any], registry: Registry, default_args: Mapping[str, Any] | None = None
) -> Any:
    """What our registry of datasets builds by: others' wrappers become ours."""
    kind = cfg.get("type")
    if not isinstance(kind, str):
        found = kind
    else:  # a name without a scope finds ours by itself
        found = registry.get(kind) if "." in kind else None
    own = _REPLACED.get(found) if isinstance(found, type) else None
    return build_from_cfg({**cfg, "type": own} if own else cfg, registry, default_args)


class _Wrapper(TakesSeeds):
    """What our wrappers share.

    The outermost of nested wrappers seeds the random numbers of an item, for all that is inside.
    So a repeated image is augmented otherwise on its second pass: its index is another one there.
    """

    ids_repeat = False
    """Whether images may share their ids: of several datasets, or one image several times."""
    _metainfo: dict[str, Any]

    @property
    def parts(self) -> list[Any]:
        """The datasets inside."""
        return self.datasets if hasattr(self, "datasets") else [self.dataset]

    @property
    def vocabulary(self) -> Vocabulary | None:
        """That of all datasets inside; None where they have none."""
        return self._metainfo.get("vocabulary")

    @property
    def cat2label(self) -> dict[int, int]:
        """Class index of category ids, where all datasets inside agree on it; else empty."""
        first, *others = (getattr(part, "cat2label", None) for part in self.parts)
        return first if first and all(other == first for other in others) else {}

    def get_cat_ids(self, idx: int) -> list[int]:
        """Class indices of the segments of one image (for ``ClassBalancedDataset``)."""
        return self.dataset.get_cat_ids(self._get_ori_dataset_idx(idx))

    def _begin(self, lazy_init: bool, ids_repeat: bool = False) -> None:
        inside = any(getattr(part, "ids_repeat", False) for part in self.parts)
        self.ids_repeat = ids_repeat or inside
        self._fully_initialized = False
        if not lazy_init:
            self.full_init()


@DATASETS.register_module()
class ConcatDataset(_Wrapper, mmdet.ConcatDataset):
    """Datasets one after the other, as one; they have the same classes.

    Args:
        datasets: configs or built datasets; their classes are the same, in the same order.
        lazy_init: load annotations later.
        ignore_keys: of metainfo, which may differ; that of the first dataset counts. Classes may
            not differ.

    Raises:
        ConfigError: there is none.
        DatasetError: datasets of other classes, or of other metainfo.
    """

    def __init__(
        self,
        datasets: Sequence[dict | Any],
        lazy_init: bool = False,
        ignore_keys: str | Sequence[str] | None = None,
    ) -> None:
        if not isinstance(datasets, (list, tuple)) or not datasets:
            raise ConfigError("ConcatDataset: `datasets` must be a list of at least one dataset")
        self.datasets = [_built(dataset) for dataset in datasets]
        self.ignore_keys = [ignore_keys] if isinstance(ignore_keys, str) else [*(ignore_keys or ())]
        self._metainfo = self.datasets[0].metainfo
        for other in self.datasets[1:]:
            _check_agreement(self.datasets[0], other, self.ignore_keys)
        self._begin(lazy_init, ids_repeat=len(self.datasets) > 1)

    def get_cat_ids(self, idx: int) -> list[int]:
        """Class indices of the segments of one image (for ``ClassBalancedDataset``)."""
        dataset, index = self._get_ori_dataset_idx(idx)
        return self.datasets[dataset].get_cat_ids(index)


@DATASETS.register_module()
class RepeatDataset(_Wrapper, mmengine.RepeatDataset):
    """A dataset ``times`` times in an epoch, augmented otherwise each time.

    Args:
        dataset: a config or a built dataset.
        times: at least 1.
        lazy_init: load annotations later.

    Raises:
        ConfigError: ``times`` is not a whole number from 1.
    """

    def __init__(self, dataset: dict | Any, times: int, lazy_init: bool = False) -> None:
        self.dataset = _built(dataset)
        self.times = _whole_number(times, "RepeatDataset: times")
        self._metainfo = self.dataset.metainfo
        self._begin(lazy_init, ids_repeat=times > 1)


@DATASETS.register_module()
class ClassBalancedDataset(_Wrapper, mmengine.ClassBalancedDataset):
    """A dataset whose images with rare classes come several times in an epoch.

    How often: see mmengine's class of this name. Semantic datasets open all of their label files.

    Args:
        dataset: a config or a built dataset with ``get_cat_ids``.
        oversample_thr: classes in a smaller share of the images than this (in [0, 1]) are rare.
        lazy_init: load annotations later.

    Raises:
        ConfigError: the threshold is not a finite number from 0.
    """

    def __init__(self, dataset: dict | Any, oversample_thr: float, lazy_init: bool = False) -> None:
        number = isinstance(oversample_thr, (int, float)) and not isinstance(oversample_thr, bool)
        if not number or not 0 <= oversample_thr < math.inf:
            raise ConfigError(
                f"ClassBalancedDataset: oversample_thr={oversample_thr!r}: it must be a number "
                "from 0, the share of images below which a class is rare"
            )
        self.dataset = _built(dataset)
        self.oversample_thr = oversample_thr
        self._metainfo = self.dataset.metainfo
        self._begin(lazy_init, ids_repeat=True)


@DATASETS.register_module()
class MultiImageMixDataset(_Wrapper, mmdet.MultiImageMixDataset):
    """A dataset whose pipeline mixes several images, such as mosaic does.

    Args:
        dataset: a config or a built dataset; its own pipeline loads an image and its annotations.
        pipeline: configs of transforms. Those with ``get_indexes`` get further images.
        skip_type_keys, max_refetch, lazy_init: of mmdet's class of this name.

    Raises:
        ConfigError: no pipeline.
    """

    def __init__(
        self,
        dataset: dict | Any,
        pipeline: Sequence[dict],
        skip_type_keys: Sequence[str] | None = None,
        max_refetch: int = 15,
        lazy_init: bool = False,
    ) -> None:
        steps = list(pipeline) if isinstance(pipeline, (list, tuple)) else []
        if not steps or not all(isinstance(step, dict) and "type" in step for step in steps):
            raise ConfigError("MultiImageMixDataset: `pipeline` must be a list of transforms")
        self._skip_type_keys = skip_type_keys
        self.pipeline_types = [step["type"] for step in steps]
        self.pipeline = [TRANSFORMS.build(step) for step in steps]
        self.dataset = _built(dataset)
        self._metainfo = self.dataset.metainfo
        self.num_samples = len(self.dataset)
        self.max_refetch = max_refetch
        self._begin(lazy_init)

    def get_cat_ids(self, idx: int) -> list[int]:
        """Class indices of the segments of one image, before others are mixed in."""
        return self.dataset.get_cat_ids(idx)


@DATASETS.register_module()
class FirstImages(RepeatDataset):
    """The first images of a dataset of any kind; wrappers have no ``indices`` that would do it.

    Args:
        dataset: a config or a built dataset.
        number: how many; all, where the dataset has fewer.
        lazy_init: load annotations later.

    Raises:
        ConfigError: ``number`` is not a whole number from 1.
    """

    def __init__(self, dataset: dict | Any, number: int, lazy_init: bool = False) -> None:
        self.number = _whole_number(number, "FirstImages: number")
        super().__init__(dataset, times=1, lazy_init=lazy_init)

    def __len__(self) -> int:
        return min(self.number, super().__len__())


# Names with a scope and classes find the originals, which know nothing of seeds.
_REPLACED: dict[type, type] = {
    mmengine.ConcatDataset: ConcatDataset,
    mmdet.ConcatDataset: ConcatDataset,
    mmengine.RepeatDataset: RepeatDataset,
    mmengine.ClassBalancedDataset: ClassBalancedDataset,
    mmdet.MultiImageMixDataset: MultiImageMixDataset,
}


def _built(dataset: dict | Any) -> Any:
    """
    Raises:
        ConfigError: neither a config nor a dataset with metainfo.
    """
    built = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
    if not isinstance(getattr(built, "metainfo", None), Mapping):
        raise ConfigError(
            f"a wrapper needs the config of a dataset, or a dataset with `metainfo`, not a "
            f"{type(built).__name__}"
        )
    return built


def _whole_number(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{what}={value!r}: it must be a whole number from 1")
    return value


def check_same_classes(
    first: Vocabulary, other: Vocabulary, first_name: str, other_name: str
) -> None:
    """Refuse to join datasets whose class indices mean different things.

    Raises:
        DatasetError: names the first class that differs.
    """
    if first.synonyms == other.synonyms and first.is_thing == other.is_thing:
        return
    if len(first) != len(other):
        difference = f"{len(first)} classes there, {len(other)} here"
    else:
        pairs = zip(first.synonyms, other.synonyms, first.is_thing, other.is_thing, strict=True)
        index, (names, others, thing, _) = next(
            (i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1] or pair[2] != pair[3]
        )
        there, here = (
            (_names(names), _names(others)) if names != others else (_kind(thing), _kind(not thing))
        )
        difference = f"class {index} ({names[0]}) is {there} there, {here} here"
    raise DatasetError(
        f"{printable(other_name)}: cannot be joined with {printable(first_name)}, which has other "
        f"classes: {difference}. Datasets that are joined have one `vocabulary` (or `label_file`), "
        "the same names in the same order"
    )


def _names(synonyms: Sequence[str]) -> str:
    return repr(",".join(synonyms))


def _kind(is_thing: bool) -> str:
    return "thing" if is_thing else "stuff"


def _check_agreement(first: Any, other: Any, ignored: Sequence[str]) -> None:
    """
    Raises:
        DatasetError: two datasets' metainfo differ in more than the ``ignored`` keys.
    """
    names = _name(first), _name(other)
    ours, theirs = first.metainfo, other.metainfo
    left_out = set(ignored)
    if ours.get("vocabulary") is not None and theirs.get("vocabulary") is not None:
        check_same_classes(ours["vocabulary"], theirs["vocabulary"], *names)
        left_out |= {*_OF_VOCABULARY}
    for key in sorted(ours.keys() | theirs.keys()):
        if key not in left_out and not _equal(ours.get(key), theirs.get(key)):
            raise DatasetError(
                f"{printable(names[1])}: cannot be joined with {printable(names[0])}: their "
                f"metainfo differs in `{printable(key)}` ({printable(theirs.get(key), 80)} here, "
                f"{printable(ours.get(key), 80)} there); make them equal, or name the key in "
                "ConcatDataset's ignore_keys to take those of the first dataset"
            )


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, np.ndarray) or isinstance(second, np.ndarray):
        return np.array_equal(first, second)
    return type(first) is type(second) and bool(first == second)


def _name(dataset: Any) -> str:
    """What tells a dataset from others, for messages."""
    while isinstance(dataset, _Wrapper):
        dataset = dataset.parts[0]
    prefixes = getattr(dataset, "data_prefix", None) or {}
    return (
        getattr(dataset, "ann_file", "")
        or next(iter(prefixes.values()), "")
        or (type(dataset).__name__)
    )
