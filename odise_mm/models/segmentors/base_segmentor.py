"""Base class of segmentors: mmengine's interface, vocabulary, settings and precision."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mmdet.structures import DetDataSample
from mmengine.model import BaseModel
from torch import Tensor, nn

from odise_mm.models.frozen import FrozenModule
from odise_mm.models.postprocess import TEST_CFG, check_test_cfg
from odise_mm.models.segmentors.results import SegmentedImages
from odise_mm.utils.device import current_device
from odise_mm.utils.precision import autocast, dtype_of
from odise_mm.vocabulary import Vocabulary

Names = str | Vocabulary | None
"""Classes of a call: a vocabulary, its name or its file. None means the model's vocabulary."""

Samples = Sequence[DetDataSample]
"""Data samples, one for every image of a batch."""

Settings = Mapping[str, Any] | None
"""``test_cfg`` of a call. Missing settings are taken from the model."""


class BaseSegmentor(BaseModel):
    """Base class of segmentors whose vocabulary and settings may change from call to call.

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

    def predict(
        self,
        inputs: Tensor,
        data_samples: Samples,
        vocabulary: Names = None,
        test_cfg: Settings = None,
    ) -> list[DetDataSample]:
        """Segment a batch and return the samples with their results."""
        raise NotImplementedError

    def segment(
        self,
        inputs: Tensor,
        data_samples: Samples | None = None,
        vocabulary: Names = None,
    ) -> Iterator[SegmentedImages]:
        """Yield masks and class predictions, one item for all images of one padded size."""
        raise NotImplementedError

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
        self.precision = precision
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
        return {**self.test_cfg, **check_test_cfg(test_cfg)}

    @contextmanager
    def _arithmetic(self, tensor: Tensor) -> Iterator[None]:
        """Compute in the model's precision, with the tensor's GPU as the current device."""
        with autocast(tensor, self.precision), current_device(tensor.device):
            yield


def _as_vocabulary(vocabulary: str | Vocabulary) -> Vocabulary:
    return vocabulary if isinstance(vocabulary, Vocabulary) else Vocabulary.load(vocabulary)
