"""Base class of segmentors: mmengine's interface, vocabulary, settings, precision and results."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.model import BaseModel
from torch import Tensor, nn

from odise_mm.config.building import build_part
from odise_mm.errors import ConfigError
from odise_mm.models.classifiers.base import (
    Classifier,
    ClassPrediction,
    NameTensors,
    spread_over,
    with_void,
)
from odise_mm.models.classifiers.memory import FEATURES, MemoryClassifier
from odise_mm.models.classifiers.region_memory import RegionMemory
from odise_mm.models.frozen import FrozenModule
from odise_mm.models.heads.mask2former_head import MaskPrediction
from odise_mm.models.postprocess import TEST_CFG, check_settings, check_test_cfg
from odise_mm.models.segmentors.queries import keep_queries, numbered, with_weights
from odise_mm.models.segmentors.regions import EmbeddedRegions, describe_regions
from odise_mm.models.segmentors.results import (
    SegmentedImages,
    add_evidence,
    check_finite,
    write_results,
)
from odise_mm.registry import MODELS
from odise_mm.utils.device import current_device
from odise_mm.utils.precision import autocast, dtype_of
from odise_mm.vocabulary import Vocabulary
from odise_mm.vocabulary.files import key_of

Names = str | Vocabulary | None
"""Classes of a call: a vocabulary, its name or its file. None means the model's vocabulary."""

Samples = Sequence[DetDataSample]
"""Data samples, one for every image of a batch."""

Part = dict | nn.Module
"""Config of a part, or the part itself."""

Settings = Mapping[str, Any] | None
"""``test_cfg`` of a call. Missing settings are taken from the model. In addition to the settings of
the model, ``alpha``, ``beta`` and ``memory_weight`` change the weights of the ensemble."""


class BaseSegmentor(BaseModel):
    """Base class of segmentors whose vocabulary and settings may change from call to call.

    A segmentor implements :meth:`segment`, which yields masks and class predictions. The ensemble
    computes class probabilities from the class predictions.

    Args:
        vocabulary: default vocabulary.
        test_cfg: default settings, see :class:`OpenVocabSegmentor`.
        data_preprocessor: config of mmdet's preprocessor.
    """

    def __init__(
        self,
        vocabulary: str | Vocabulary,
        test_cfg: dict[str, Any] | None,
        data_preprocessor: dict | nn.Module | None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor)
        self.test_cfg: dict[str, Any] = {**TEST_CFG, **check_test_cfg(test_cfg, TypeError)}
        self.vocabulary = vocabulary
        self.precision = "fp32"

    def _build_clip(self, clip: Part | None, text_encoder: Part | None) -> dict[str, Any]:
        """Build the CLIP, if there is one, and return what other parts can share with it."""
        if clip is None:
            return {}
        self.clip = build_part(clip, MODELS)
        text_encoder = text_encoder or {"type": "TextEncoder"}
        return {
            "clip": self.clip,
            "text_encoder": build_part(text_encoder, MODELS, clip=self.clip),
        }

    def _build_classifiers(
        self,
        classifiers: Sequence[Part],
        ensemble: Part,
        shared: Mapping[str, Any],
        source: nn.Module,
        neck: nn.Module | None = None,
    ) -> None:
        """Build the classifiers and the ensemble.

        Args:
            classifiers: configs or modules.
            ensemble: config or module.
            shared: values for missing arguments of the classifiers.
            source: part that the features of the masks come from. If it ``names_masks``, as some
                mask sources do, no classifier is needed.
            neck: part between it and the head, if any.
        """
        names_masks = getattr(source, "names_masks", False)
        if isinstance(classifiers, Mapping) or not (classifiers or names_masks):
            raise ConfigError(
                f"classifiers={classifiers!r} must be a list of at least one classifier"
            )
        self.classifiers = nn.ModuleList(build_part(c, MODELS, **shared) for c in classifiers)
        # If the config does not set the training vocabulary, it is the model's until a checkpoint
        # or the training dataset provides it.
        self.train_vocabulary_is_open = (
            isinstance(ensemble, Mapping) and ensemble.get("train_vocabulary") is None
        )
        self.ensemble = build_part(ensemble, MODELS, train_vocabulary=self.vocabulary)
        for classifier in self.classifiers:
            if isinstance(classifier, Classifier):
                classifier.check_features(source, neck)
        if isinstance(next(iter(self.classifiers), None), MemoryClassifier):
            raise ConfigError(
                "MemoryClassifier compares what other classifiers embed; put it after them"
            )
        self._check_memory()

    @property
    def memory(self) -> RegionMemory | None:
        """The named regions that masks are compared with; None if the model has no such part.

        Setting it adds a :class:`~odise_mm.models.MemoryClassifier` if there is none. Do not set it
        while other threads use the model; the memory itself may be changed at any time.

        Raises:
            ConfigError: the ensemble cannot use predictions that abstain.
        """
        part = self._memory_part()
        return None if part is None else part.memory

    @memory.setter
    def memory(self, memory: RegionMemory) -> None:
        part = self._memory_part()
        if part is None:
            self.classifiers.append(MemoryClassifier(memory))
            try:
                self._check_memory()
            except ConfigError:
                del self.classifiers[-1]
                raise
        else:
            part.memory = memory

    def _memory_part(self) -> MemoryClassifier | None:
        parts = (part for part in self.classifiers if isinstance(part, MemoryClassifier))
        return next(parts, None)

    def _check_memory(self) -> None:
        if self._memory_part() is not None and not hasattr(self.ensemble, "memory_alpha"):
            raise ConfigError(
                f"the model's ensemble, {type(self.ensemble).__name__}, has no weights for a "
                "memory; use GeometricEnsemble or a class derived from it"
            )

    @property
    def vocabulary(self) -> Vocabulary:
        """Default vocabulary. Accepts a Vocabulary, the name of a built-in one, or a file."""
        return self._vocabulary

    @vocabulary.setter
    def vocabulary(self, vocabulary: str | Vocabulary) -> None:
        self._vocabulary = _as_vocabulary(vocabulary)

    @property
    def dataset_meta(self) -> dict[str, Any]:
        """Metainfo of the vocabulary in mmdet's format, for visualizers and metrics."""
        return self.vocabulary.metainfo

    def test_step(
        self,
        data: dict[str, Any],
        vocabulary: Names = None,
        test_cfg: Settings = None,
    ) -> list[DetDataSample]:
        """Preprocess a batch of a data loader and run :meth:`predict`, as mmengine does.

        Args:
            data: batch with ``inputs`` and ``data_samples``.
            vocabulary: see :meth:`predict`.
            test_cfg: see :meth:`predict`.

        Returns:
            The samples with their results.
        """
        data = self.data_preprocessor(data, False)
        return self(**data, mode="predict", vocabulary=vocabulary, test_cfg=test_cfg)

    def forward(
        self,
        inputs: Tensor,
        data_samples: Samples | None = None,
        mode: str = "tensor",
        vocabulary: Names = None,
        test_cfg: Settings = None,
    ) -> list[DetDataSample] | dict[str, Tensor] | tuple[Tensor, ...]:
        """Run the model in one of mmengine's modes.

        Args:
            inputs: (B, 3, H, W) in [0, 1], RGB, padded at bottom and right.
            data_samples: see :meth:`predict` and :meth:`loss`; ignored in mode ``tensor``.
            mode: ``predict`` for results, ``loss`` for losses, or ``tensor`` for the raw outputs
                on whole padded images, which tools need that count or trace operations.
            vocabulary: see :meth:`predict`.
            test_cfg: see :meth:`predict`; ignored in the other modes.

        Returns:
            See :meth:`predict` and :meth:`loss`. In mode ``tensor``, mask logits
            (B, Q, H / 4, W / 4), then the class logits (B, Q, K) of every classifier.

        Raises:
            ValueError: unknown mode.
        """
        if mode == "predict":
            return self.predict(inputs, data_samples, vocabulary, test_cfg)
        if mode == "loss":
            return self.loss(inputs, data_samples, vocabulary)
        if mode != "tensor":
            raise ValueError(
                f"mode={mode!r}: {type(self).__name__} supports mode='predict', mode='loss' and "
                "mode='tensor'"
            )
        (found,) = self.segment(inputs, vocabulary=vocabulary)
        return (
            found.prediction.masks,
            *(class_prediction.logits for class_prediction in found.class_predictions),
        )

    def loss(
        self,
        inputs: Tensor,
        data_samples: Samples,
        vocabulary: Names = None,
    ) -> dict[str, Tensor]:
        """Compute the losses by name."""
        raise NotImplementedError

    @torch.no_grad()
    def predict(
        self,
        inputs: Tensor,
        data_samples: Samples,
        vocabulary: Names = None,
        test_cfg: Settings = None,
    ) -> list[DetDataSample]:
        """Segment a batch. Images of different sizes do not affect each other.

        Args:
            inputs: (B, 3, H, W) in [0, 1], RGB, padded at bottom and right.
            data_samples: samples with ``img_shape``, ``pad_shape`` and ``ori_shape``.
            vocabulary: the classes of this call; None means the model's vocabulary.
            test_cfg: settings of this call. Missing settings are taken from the model.

        Returns:
            The samples with the results that :func:`.results.add_results` lists.

        Raises:
            FloatingPointError: masks are not finite because weights are broken or float16
                overflowed.
            VocabularyError: unknown vocabulary.
            ConfigError: unknown setting, or a value that is not allowed.
        """
        # Read once, so that changes by other threads only affect later calls.
        vocabulary = self._vocabulary_or_default(vocabulary)
        test_cfg = self._with_default_settings(test_cfg)
        with_weights(self.ensemble, test_cfg)  # raises before the work starts
        for found in self.segment(inputs, data_samples, vocabulary):
            self.results_from(found, data_samples, test_cfg)
        return list(data_samples)

    def segment(
        self,
        inputs: Tensor,
        data_samples: Samples | None = None,
        vocabulary: Names = None,
        regions: Tensor | None = None,
    ) -> Iterator[SegmentedImages]:
        """Compute masks and class predictions, which :meth:`results_from` turns into results.

        Args:
            inputs: (B, 3, H, W) in [0, 1], RGB, padded at bottom and right.
            data_samples: samples with ``img_shape`` and ``pad_shape``; None if no image is padded.
            vocabulary: see :meth:`predict`.
            regions: (R, H, W) bool, regions of the only image, which follow the masks.

        Yields:
            One item for all images of one padded size. Items are computed lazily.
        """
        raise NotImplementedError

    @torch.no_grad()
    def embed_regions(
        self, inputs: Tensor, data_samples: Samples | None, regions: Tensor
    ) -> EmbeddedRegions:
        """Embed regions of one image for the model's memory, and check that the memory fits.

        Args:
            inputs: (1, 3, H, W), see :meth:`segment`.
            data_samples: see :meth:`segment`.
            regions: (R, H', W') bool, over the image without padding, at any size.

        Raises:
            ConfigError: the model has no :attr:`memory`.
            CheckpointError: the memory is from another embedder.
        """
        part = self._memory_part()
        if part is None:
            raise ConfigError("the model has no memory: set model.memory = RegionMemory() first")
        names = Vocabulary(self.vocabulary.synonyms[:1], (True,))  # any, for they are not used
        (found,) = self.segment(inputs, data_samples, names, regions)
        index = [*self.classifiers].index(part) - len(self.classifiers)
        embeddings = found.class_predictions[index].embeddings[0]
        check_finite((embeddings,), self.precision)
        return describe_regions(found.prediction.masks[0], embeddings, len(regions))

    def embedding_modules(self, source: str) -> list[nn.Module]:
        """Return the networks that embed masks for a source of a memory's embeddings.

        Args:
            source: a classifier, by its name in results, or ``features``.
        """
        features = [getattr(self, name, None) for name in ("captioner", "backbone", "neck")]
        names = self.classifier_names(len(self.classifiers))
        if source == FEATURES:
            modules = features
        elif source == names[0] and hasattr(self.classifiers[0], "mask_embed_dim"):
            modules = [*features, getattr(self, "head", None)]
        else:
            classifier = dict(zip(names, self.classifiers, strict=True)).get(source)
            clip = getattr(classifier, "clip", None)
            modules = [classifier if clip is None else clip.visual]
        return [module for module in modules if module is not None]

    def classifier_names(self, count: int) -> tuple[str, ...]:
        """Return the names of ``count`` class predictions; those of a mask source come first."""
        names = [type(part).__name__ for part in self.classifiers]
        source = type(getattr(self, "proposals", None)).__name__
        return numbered([source] * (count - len(names)) + names)

    def _classify(
        self,
        prediction: MaskPrediction,
        images: Sequence[Tensor],
        vocabulary: Vocabulary,
        before: Sequence[ClassPrediction] = (),
    ) -> list[ClassPrediction]:
        """Run all classifiers.

        Args:
            prediction: masks, with what classifiers read.
            images: the unpadded images.
            vocabulary: the K classes.
            before: predictions of a mask source.

        Returns:
            ``before``, and the prediction of each classifier; the first has ``p_void`` if anything
            predicts void.
        """
        found = list(before)
        names = self.classifier_names(len(found) + len(self.classifiers))
        words, places = self.readable(vocabulary, self.memory.names if self.memory else ())
        for classifier in self.classifiers:
            reads = getattr(classifier, "reads_embeddings", False)
            if not prediction.masks.shape[1]:
                found.append(_of_no_masks(prediction, vocabulary, abstains=reads))
            elif reads:
                named = _embeddings(found, names, prediction)
                given = prediction._replace(named=named)
                if isinstance(classifier, MemoryClassifier) and not prediction.masks.is_meta:
                    classifier.memory.require(classifier.embedder(given, self))
                found.append(classifier(given, images, vocabulary))
            else:
                one = classifier(prediction, images, words)
                found.append(one if places is None else spread_over(one, places, len(vocabulary)))
        found[0] = with_void(found[0], prediction)
        return found

    def readable(
        self, vocabulary: Vocabulary, names: Iterable[str]
    ) -> tuple[Vocabulary, list[int] | None]:
        """Leave out taught classes that the text encoder cannot read, which only a memory names.

        A text encoder with a list of words raises an error for other words; CLIP's byte pair
        encoding reads everything.

        Args:
            vocabulary: the classes.
            names: taught names.

        Returns:
            The classes that are left, and their indices; all of them and None in most cases.
        """
        taught = set(map(key_of, names))
        clip = getattr(self, "clip", None)
        if not taught or clip is None or isinstance(vocabulary, NameTensors):
            return vocabulary, None
        kept = [
            index
            for index, group in enumerate(vocabulary.synonyms)
            if all(map(clip.can_read, group)) or taught.isdisjoint(map(key_of, group))
        ]
        if len(kept) in (0, len(vocabulary)):
            return vocabulary, None
        names, things, sources = (
            tuple(values[index] for index in kept)
            for values in (vocabulary.synonyms, vocabulary.is_thing, vocabulary.source_names)
        )
        return Vocabulary(names, things, vocabulary.name, sources), kept

    def probabilities(self, found: SegmentedImages, test_cfg: Settings = None) -> Tensor:
        """Compute the ensemble's probabilities of the K classes and void: (B, Q, K + 1) float32.

        Args:
            found: an item of :meth:`segment`.
            test_cfg: settings, of which the weights of the ensemble are used.

        Raises:
            ConfigError: the ensemble has no such weights.
            FloatingPointError: masks or probabilities are not finite.
        """
        ensemble = with_weights(self.ensemble, test_cfg or {}, found.class_predictions)
        with self._arithmetic(found.prediction.masks):
            joined = ensemble(found.class_predictions, found.vocabulary)
        check_finite((found.prediction.masks, joined), self.precision)
        return joined

    def results_from(
        self, found: SegmentedImages, data_samples: Samples, test_cfg: Settings = None
    ) -> None:
        """Write the results into the samples of the segmented images.

        Args:
            found: an item of :meth:`segment`.
            data_samples: samples of the whole batch, with ``img_shape``, ``pad_shape`` and
                ``ori_shape``.
            test_cfg: all settings, such as ``{**model.test_cfg, "topk": 9}``; None means the
                model's settings.
        """
        settings = self.test_cfg if test_cfg is None else test_cfg
        scores = self.probabilities(found, settings)
        fates = write_results(found, scores, data_samples, settings)
        samples = [data_samples[place] for place in found.places]
        part = self._memory_part()
        if part is not None:
            for index, (sample, fate) in enumerate(zip(samples, fates, strict=True)):
                add_evidence(sample, found.class_predictions, fate, part.memory, index)
        if settings["keep_queries"]:
            names = self.classifier_names(len(found.class_predictions))
            keep_queries(
                found,
                scores,
                samples,
                fates,
                settings,
                names,
                self.ensemble,
                self.precision,
                part,
            )

    def set_precision(self, precision: str) -> "BaseSegmentor":
        """Set the precision of the computation and return the model.

        The weights of the frozen parts are converted; the trained parts run under autocast. Class
        probabilities and post-processing stay in float32. Switching back to ``fp32`` does not
        restore the lost digits of the frozen weights; load them again for that.

        Args:
            precision: ``fp32``, ``bf16`` or ``fp16``.

        Raises:
            ConfigError: unknown precision.
        """
        dtype = dtype_of(precision)
        for part in self.modules():
            if isinstance(part, FrozenModule):
                part.cast(dtype)
            if isinstance(part, BaseSegmentor):  # this one, and one that makes masks for it
                part.precision = precision
        return self

    def compile_frozen(self, **options: Any) -> "BaseSegmentor":
        """Compile the frozen parts with ``torch.compile`` and return the model.

        The first call of the compiled model takes minutes.

        Args:
            **options: arguments of ``torch.compile``, such as ``backend`` and ``mode``.
        """
        for part in {id(p): p for p in self.modules() if isinstance(p, FrozenModule)}.values():
            part.compile_parts(**options)
        return self

    def _vocabulary_or_default(self, vocabulary: Names) -> Vocabulary:
        return self.vocabulary if vocabulary is None else _as_vocabulary(vocabulary)

    def _with_default_settings(self, test_cfg: Settings) -> dict[str, Any]:
        return {**self.test_cfg, **check_settings(test_cfg)}

    @contextmanager
    def _arithmetic(self, tensor: Tensor) -> Iterator[None]:
        """Compute in the model's precision, with the tensor's GPU as the current device."""
        with autocast(tensor, self.precision), current_device(tensor.device):
            yield


def _as_vocabulary(vocabulary: str | Vocabulary) -> Vocabulary:
    known = isinstance(vocabulary, Vocabulary | NameTensors)
    return vocabulary if known else Vocabulary.load(vocabulary)


def _of_no_masks(
    prediction: MaskPrediction, vocabulary: Vocabulary, abstains: bool
) -> ClassPrediction:
    """Return the prediction for images without masks, which networks do not accept."""
    batch, count = len(prediction.masks), len(vocabulary)
    logits = prediction.masks.new_zeros(batch, 0, count)
    if not abstains:
        return ClassPrediction(logits)
    abstaining = logits.new_ones(batch, count, dtype=torch.bool)
    return ClassPrediction(logits, p_void=logits[..., 0], abstains=abstaining, relative=logits)


def _embeddings(
    found: Sequence[ClassPrediction], names: Sequence[str], prediction: MaskPrediction
) -> dict[str, Tensor]:
    """Return what classifiers compare with the names; the first one may use the head's."""
    named = {}
    for index, (name, one) in enumerate(zip(names, found, strict=False)):
        embeddings = one.embeddings
        if embeddings is None and index == 0:
            embeddings = prediction.embeddings
        if embeddings is not None:
            named[name] = embeddings
    return named
