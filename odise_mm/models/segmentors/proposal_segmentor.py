"""A segmentor that names masks from elsewhere."""

from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from torch import Tensor

from odise_mm.config.building import build_part
from odise_mm.errors import TrainingError
from odise_mm.models.segmentors.base_segmentor import BaseSegmentor, Names, Part, Samples
from odise_mm.models.segmentors.results import SegmentedImages, cropped
from odise_mm.registry import MODELS
from odise_mm.vocabulary import Vocabulary


@MODELS.register_module()
class ProposalSegmentor(BaseSegmentor):
    """Names the masks of a mask source.

    The class predictions of the source, if it makes any, come before those of the classifiers, and
    the ensemble combines them all. So with a source that predicts void and one classifier, the
    source's prediction takes the place of the model's own, and the classifier that of CLIP.

    Args:
        proposals: the :class:`~odise_mm.models.proposals.base.MaskSource`, or its config.
        classifiers: predict the classes of the masks.
        ensemble: computes class probabilities from the class predictions.
        vocabulary, clip, text_encoder, test_cfg, data_preprocessor: see
            :class:`~odise_mm.models.OpenVocabSegmentor`. The CLIP is that of the classifiers; a
            source has its own.

    Raises:
        ConfigError: a setting is not allowed, or a classifier needs features of the head.
    """

    def __init__(
        self,
        proposals: Part,
        classifiers: Sequence[Part],
        ensemble: Part,
        vocabulary: str | Vocabulary = "coco",
        clip: Part | None = None,
        text_encoder: dict | None = None,
        test_cfg: dict[str, Any] | None = None,
        data_preprocessor: Part | None = None,
    ) -> None:
        super().__init__(vocabulary, test_cfg, data_preprocessor)
        shared = self._build_clip(clip, text_encoder)
        self.proposals = build_part(proposals, MODELS)
        self._build_classifiers(classifiers, ensemble, shared, self.proposals)

    def segment(
        self, inputs: Tensor, data_samples: Samples | None = None, vocabulary: Names = None
    ) -> Iterator[SegmentedImages]:
        """See :meth:`.BaseSegmentor.segment`."""
        vocabulary = self._vocabulary_or_default(vocabulary)
        images = cropped(inputs, data_samples, "img_shape")
        for found in self.proposals.segment(inputs, data_samples, vocabulary):
            whole = [images[place] for place in found.places]
            with self._arithmetic(inputs):
                own = [c(found.prediction, whole, vocabulary) for c in self.classifiers]
            yield found._replace(class_predictions=[*found.class_predictions, *own])

    def loss(self, inputs: Tensor, data_samples: Samples, vocabulary: Names = None) -> NoReturn:
        """Raise, because masks from elsewhere cannot be trained.

        Raises:
            TrainingError: always.
        """
        raise TrainingError(
            "a ProposalSegmentor cannot be trained: train the segmentor that makes the masks "
            "(OpenVocabSegmentor), or load weights for the classifiers"
        )
