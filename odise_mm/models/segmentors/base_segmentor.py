"""What is around the chain of a segmentor: mmengine's entries, names, settings, number formats."""

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
"""What a call looks for: a vocabulary, or the name or file of one; None: the model's."""

Samples = Sequence[DetDataSample]
"""One for every image of a batch."""

Settings = Mapping[str, Any] | None
"""``test_cfg`` of a call; what it leaves out is the model's."""


class BaseSegmentor(BaseModel):
    """Base of segmentors whose names and settings may differ from call to call.

    Args:
        vocabulary: the names to look for where a call brings none.
        test_cfg: settings where a call brings none, see :class:`OpenVocabSegmentor`.
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
        """The names to look for. Set a Vocabulary, a built-in name or a file."""
        return self._vocabulary

    @vocabulary.setter
    def vocabulary(self, vocabulary: str | Vocabulary) -> None:
        self._vocabulary = _as_vocabulary(vocabulary)

    @property
    def dataset_meta(self) -> dict[str, Any]:
        """The vocabulary as mmdet's metainfo, for visualizers and metrics."""
        return self.vocabulary.metainfo

    def test_step(
        self,
        data: dict[str, Any],
        vocabulary: Names = None,
        test_cfg: Settings = None,
    ) -> list[DetDataSample]:
        """As mmengine's: preprocess a batch as a data loader gives it, then :meth:`predict`."""
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
        """mmengine's entry: ``predict`` gives results, ``loss`` what is to be minimized.

        Args:
            inputs: (B, 3, H, W) in [0, 1], RGB, padded at bottom and right.
            data_samples: see :meth:`predict` and :meth:`loss`; not used in mode ``tensor``.
            mode: ``predict``, ``loss``, or ``tensor``: the raw outputs for whole padded images, for
                tools that count or trace operations.
            vocabulary, test_cfg: of this call, see :meth:`predict`; losses have no ``test_cfg``.

        Returns:
            See :meth:`predict` and :meth:`loss`; ``tensor``: mask logits (B, Q, H / 4, W / 4), then
            the class logits (B, Q, K) of every classifier.
        """
        if mode == "predict":
            return self.predict(inputs, data_samples, vocabulary, test_cfg)
        if mode == "loss":
            return self.loss(inputs, data_samples, vocabulary)
        if mode != "tensor":
            raise ValueError(
                f"mode={mode!r}: {type(self).__name__} knows mode='predict', mode='loss' and "
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
        """What is to be minimized."""
        raise NotImplementedError

    def predict(
        self,
        inputs: Tensor,
        data_samples: Samples,
        vocabulary: Names = None,
        test_cfg: Settings = None,
    ) -> list[DetDataSample]:
        """The samples with their results."""
        raise NotImplementedError

    def segment(
        self,
        inputs: Tensor,
        data_samples: Samples | None = None,
        vocabulary: Names = None,
    ) -> Iterator[SegmentedImages]:
        """Masks and predictions; one item for all images of one padded size."""
        raise NotImplementedError

    def set_precision(self, precision: str) -> "BaseSegmentor":
        """Number format of the arithmetic: ``fp32``, ``bf16`` or ``fp16``.

        The frozen parts' weights are stored in it; the trained parts run under autocast. Class
        probabilities and post-processing stay in float32. Going back to ``fp32`` does not bring
        back the digits: load the frozen weights again for that.

        Raises:
            ValueError: an unknown name.
        """
        dtype = dtype_of(precision)
        for part in self.modules():
            if isinstance(part, FrozenModule):
                part.cast(dtype)
        self.precision = precision
        return self

    def compile_frozen(self, **options: Any) -> "BaseSegmentor":
        """Run the frozen parts through ``torch.compile``; the first call takes minutes.

        ``options`` are that function's (``backend``, ``mode``, ...).
        """
        for part in {id(p): p for p in self.modules() if isinstance(p, FrozenModule)}.values():
            part.compile_parts(**options)
        return self

    def _names(self, vocabulary: Names) -> Vocabulary:
        """Those of a call, or the model's."""
        return self.vocabulary if vocabulary is None else _as_vocabulary(vocabulary)

    def _settings(self, test_cfg: Settings) -> dict[str, Any]:
        """All settings: those of a call, the rest the model's."""
        return {**self.test_cfg, **check_test_cfg(test_cfg)}

    @contextmanager
    def _arithmetic(self, tensor: Tensor) -> Iterator[None]:
        """The model's number format, and the tensor's GPU as the current one."""
        with autocast(tensor, self.precision), current_device(tensor.device):
            yield


def _as_vocabulary(vocabulary: str | Vocabulary) -> Vocabulary:
    return vocabulary if isinstance(vocabulary, Vocabulary) else Vocabulary.load(vocabulary)
