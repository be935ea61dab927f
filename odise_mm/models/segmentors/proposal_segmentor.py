"""A segmentor that names masks from elsewhere."""

from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from odise_mm.config.building import build_part
from odise_mm.errors import TrainingError
from odise_mm.models.classifiers.base import ClassPrediction
from odise_mm.models.segmentors.base_segmentor import BaseSegmentor, Names, Part, Samples
from odise_mm.models.segmentors.regions import with_regions
from odise_mm.models.segmentors.results import SegmentedImages, cropped
from odise_mm.registry import MODELS
from odise_mm.vocabulary import Vocabulary


@MODELS.register_module()
class ProposalSegmentor(BaseSegmentor):
    """Names the masks of a mask source and merges them, as for the masks of a head.

    A mask source replaces backbone, neck and head together, so this is a segmentor of its own. The
    class predictions of the source, if it makes any, come before those of the classifiers, and
    the ensemble combines them all. So with a source that predicts void and one classifier, the
    source's prediction takes the place of the model's own, and the classifier that of CLIP. If the
    first prediction has no probability of void, the source's objectness has it.

    Panoptic inference gives each pixel at most one segment, also where masks overlap. An image
    without masks has no segments and no instances; its semantic map has the first class everywhere.

    Args:
        proposals: the :class:`~odise_mm.models.proposals.base.MaskSource`, or its config.
        classifiers: predict the classes of the masks. They may be empty if the source does that.
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
        self,
        inputs: Tensor,
        data_samples: Samples | None = None,
        vocabulary: Names = None,
        regions: Tensor | None = None,
    ) -> Iterator[SegmentedImages]:
        """See :meth:`.BaseSegmentor.segment`."""
        vocabulary = self._vocabulary_or_default(vocabulary)
        images = cropped(inputs, data_samples, "img_shape")
        for found in self.proposals.segment(inputs, data_samples, vocabulary):
            whole = [images[place] for place in found.places]
            prediction, before = found.prediction, found.class_predictions
            if regions is not None:
                prediction = with_regions(prediction, regions, *whole)
                # The source names its own masks, and regions are only embedded.
                before = [_with_rows(each, len(regions)) for each in before]
            with self._arithmetic(inputs):
                predictions = self._classify(prediction, whole, found.vocabulary, before)
            yield found._replace(prediction=prediction, class_predictions=predictions)

    def loss(self, inputs: Tensor, data_samples: Samples, vocabulary: Names = None) -> NoReturn:
        """Raise, because masks from elsewhere cannot be trained.

        Raises:
            TrainingError: always.
        """
        raise TrainingError(
            "a ProposalSegmentor cannot be trained: train the segmentor that makes the masks "
            "(OpenVocabSegmentor), or load weights for the classifiers"
        )


def _with_rows(prediction: ClassPrediction, count: int) -> ClassPrediction:
    """Append rows of zeros to the class prediction of a mask source."""

    def longer(value: Tensor | None) -> Tensor | None:
        if value is None:
            return None
        return torch.cat([value, value.new_zeros(len(value), count, *value.shape[2:])], dim=1)

    logits, p_void, valid, embeddings = prediction[:4]
    return ClassPrediction(longer(logits), longer(p_void), longer(valid), longer(embeddings))
