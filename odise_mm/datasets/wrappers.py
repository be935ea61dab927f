"""mmengine's and mmdet's dataset wrappers, with reproducible items.

They are registered under the same names. If this package's registry builds a
``mmdet.ConcatDataset``, ``mmengine.RepeatDataset`` and so on, it uses these classes as well.
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

# Metainfo that follows from the vocabulary; check_same_classes compares vocabularies instead.
_OF_VOCABULARY = ("vocabulary", "classes", "thing_classes", "stuff_classes")


def build_dataset(
    cfg: Mapping[str, Any], registry: Registry, default_args: Mapping[str, Any] | None = None
) -> Any:
    """Build a dataset; wrappers of mmengine and mmdet are replaced by this package's."""
    kind = cfg.get("type")
    if not isinstance(kind, str):
        found = kind
    else:  # a name without a scope already resolves to this package's wrapper
        found = registry.get(kind) if "." in kind else None
    own = _REPLACED.get(found) if isinstance(found, type) else None
    return build_from_cfg({**cfg, "type": own} if own else cfg, registry, default_args)


class _Wrapper(TakesSeeds):
    """Base of the wrappers.

    If wrappers are nested, the outermost one seeds the random numbers of an item. A repeated image
    has a different index there each time, so it is augmented differently.
    """

    ids_repeat = False
    """Whether several items may share an image id."""
    _metainfo: dict[str, Any]

    @property
    def parts(self) -> list[Any]:
        """The datasets inside."""
        return self.datasets if hasattr(self, "datasets") else [self.dataset]

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The common vocabulary of all datasets inside; None if they have none."""
        return self._metainfo.get("vocabulary")

    @property
    def cat2label(self) -> dict[int, int]:
        """Category id -> class index; empty if the datasets inside differ."""
        first, *others = (getattr(part, "cat2label", None) for part in self.parts)
        return first if first and all(other == first for other in others) else {}

    def get_cat_ids(self, idx: int) -> list[int]:
        """Return the class indices of an image's segments (for ``ClassBalancedDataset``)."""
        return self.dataset.get_cat_ids(self._get_ori_dataset_idx(idx))

    def _begin(self, lazy_init: bool, ids_repeat: bool = False) -> None:
        inside = any(getattr(part, "ids_repeat", False) for part in self.parts)
        self.ids_repeat = ids_repeat or inside
        self._fully_initialized = False
        if not lazy_init:
            self.full_init()


@DATASETS.register_module()
class ConcatDataset(_Wrapper, mmdet.ConcatDataset):
    """Concatenation of datasets with the same classes.

    Args:
        datasets: configs or built datasets. Their classes must be the same, in the same order.
        lazy_init: whether to load annotations later.
        ignore_keys: keys of metainfo that may differ; those of the first dataset are used. Classes
            must not differ.

    Raises:
        ConfigError: ``datasets`` is empty or not a list.
        DatasetError: the datasets differ in their classes or other metainfo.
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
        """Return the class indices of an image's segments (for ``ClassBalancedDataset``)."""
        dataset, index = self._get_ori_dataset_idx(idx)
        return self.datasets[dataset].get_cat_ids(index)


@DATASETS.register_module()
class RepeatDataset(_Wrapper, mmengine.RepeatDataset):
    """A dataset that is repeated in an epoch, augmented differently each time.

    Args:
        dataset: config or built dataset.
        times: number of repetitions, at least 1.
        lazy_init: whether to load annotations later.

    Raises:
        ConfigError: ``times`` is not a positive integer.
    """

    def __init__(self, dataset: dict | Any, times: int, lazy_init: bool = False) -> None:
        self.dataset = _built(dataset)
        self.times = _whole_number(times, "RepeatDataset: times")
        self._metainfo = self.dataset.metainfo
        self._begin(lazy_init, ids_repeat=times > 1)


@DATASETS.register_module()
class ClassBalancedDataset(_Wrapper, mmengine.ClassBalancedDataset):
    """A dataset that repeats images with rare classes in an epoch.

    mmengine's class of the same name defines how often. Semantic datasets open all label files for
    this.

    Args:
        dataset: config or built dataset with ``get_cat_ids``.
        oversample_thr: a class is rare if the fraction of images with it, in [0, 1], is below this
            threshold.
        lazy_init: whether to load annotations later.

    Raises:
        ConfigError: the threshold is negative or not a finite number.
    """

    def __init__(self, dataset: dict | Any, oversample_thr: float, lazy_init: bool = False) -> None:
        number = isinstance(oversample_thr, (int, float)) and not isinstance(oversample_thr, bool)
        if not number or not 0 <= oversample_thr < math.inf:
            raise ConfigError(
                f"ClassBalancedDataset: oversample_thr={oversample_thr!r} must be a number >= 0, "
                "the fraction of images below which a class is rare"
            )
        self.dataset = _built(dataset)
        self.oversample_thr = oversample_thr
        self._metainfo = self.dataset.metainfo
        self._begin(lazy_init, ids_repeat=True)


@DATASETS.register_module()
class MultiImageMixDataset(_Wrapper, mmdet.MultiImageMixDataset):
    """A dataset whose pipeline mixes several images, for example with mosaic.

    Args:
        dataset: config or built dataset; its pipeline loads an image and its annotations.
        pipeline: configs of transforms. Those with ``get_indexes`` get more images.
        skip_type_keys, max_refetch, lazy_init: see mmdet's class of the same name.

    Raises:
        ConfigError: ``pipeline`` is empty or not a list of transforms.
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
        """Return the class indices of an image's segments, before other images are mixed in."""
        return self.dataset.get_cat_ids(idx)


@DATASETS.register_module()
class FirstImages(RepeatDataset):
    """The first images of a dataset. Unlike ``indices``, it also works with wrappers.

    Args:
        dataset: config or built dataset.
        number: number of images; if the dataset has fewer, all are used.
        lazy_init: whether to load annotations later.

    Raises:
        ConfigError: ``number`` is not a positive integer.
    """

    def __init__(self, dataset: dict | Any, number: int, lazy_init: bool = False) -> None:
        self.number = _whole_number(number, "FirstImages: number")
        super().__init__(dataset, times=1, lazy_init=lazy_init)

    def __len__(self) -> int:
        return min(self.number, super().__len__())


# Classes, and names with a scope, resolve to the originals, which do not support seeds.
_REPLACED: dict[type, type] = {
    mmengine.ConcatDataset: ConcatDataset,
    mmdet.ConcatDataset: ConcatDataset,
    mmengine.RepeatDataset: RepeatDataset,
    mmengine.ClassBalancedDataset: ClassBalancedDataset,
    mmdet.MultiImageMixDataset: MultiImageMixDataset,
}


def _built(dataset: dict | Any) -> Any:
    """Build the dataset of a config, or return a built dataset.

    Raises:
        ConfigError: neither a config nor a dataset with metainfo.
    """
    built = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
    if not isinstance(getattr(built, "metainfo", None), Mapping):
        raise ConfigError(
            f"a dataset wrapper needs a config or a dataset with `metainfo`, not a "
            f"{type(built).__name__}"
        )
    return built


def _whole_number(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{what}={value!r} must be a positive integer")
    return value


def check_same_classes(
    first: Vocabulary, other: Vocabulary, first_name: str, other_name: str
) -> None:
    """Check that two vocabularies assign the same classes to the same indices.

    Args:
        first, other: the vocabularies.
        first_name, other_name: names of their datasets, for the message.

    Raises:
        DatasetError: they differ; the message names the first class that does.
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
        f"{printable(other_name)}: cannot be concatenated with {printable(first_name)}, whose "
        f"classes differ: {difference}. Give both the same `vocabulary` or `label_file`, with the "
        "same names in the same order"
    )


def _names(synonyms: Sequence[str]) -> str:
    return repr(",".join(synonyms))


def _kind(is_thing: bool) -> str:
    return "thing" if is_thing else "stuff"


def _check_agreement(first: Any, other: Any, ignored: Sequence[str]) -> None:
    """Check that two datasets have the same metainfo, apart from the ``ignored`` keys.

    Raises:
        DatasetError: they differ.
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
                f"{printable(names[1])}: cannot be concatenated with {printable(names[0])}: their "
                f"metainfo differs in `{printable(key)}` ({printable(theirs.get(key), 80)} here, "
                f"{printable(ours.get(key), 80)} there); make them equal, or add the key to "
                "ConcatDataset's ignore_keys to use the value of the first dataset"
            )


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, np.ndarray) or isinstance(second, np.ndarray):
        return np.array_equal(first, second)
    return type(first) is type(second) and bool(first == second)


def _name(dataset: Any) -> str:
    """Return a name that identifies a dataset in messages."""
    while isinstance(dataset, _Wrapper):
        dataset = dataset.parts[0]
    prefixes = getattr(dataset, "data_prefix", None) or {}
    return (
        getattr(dataset, "ann_file", "")
        or next(iter(prefixes.values()), "")
        or (type(dataset).__name__)
    )
