"""Interface of mask sources."""

from collections.abc import Iterator

from torch import Tensor, nn

from odise_mm.models.segmentors.base_segmentor import Samples
from odise_mm.models.segmentors.results import SegmentedImages
from odise_mm.vocabulary import Vocabulary


class MaskSource(nn.Module):
    """Base class of mask sources: where a :class:`~odise_mm.models.ProposalSegmentor` gets masks.

    A source with weights is also a :class:`~odise_mm.models.frozen.FrozenModule`: it loads its own
    weights, and checkpoints of the segmentor do not contain them.
    """

    def segment(
        self, inputs: Tensor, data_samples: Samples | None, vocabulary: Vocabulary
    ) -> Iterator[SegmentedImages]:
        """Yield the masks of a batch of images.

        Args:
            inputs: (B, 3, H, W) in [0, 1], RGB, padded at bottom and right.
            data_samples: samples with ``img_shape`` and ``pad_shape``, and whatever else the source
                needs, such as ``img_path``; None if no image is padded.
            vocabulary: the K classes.

        Yields:
            Groups of images whose masks have the same size. Each has the places of its images in
            the batch, and a ``prediction`` with mask logits that cover the padded images at stride
            4, (N, Q, H / 4, W / 4). Sources that look at images of another size set
            ``prediction.frames``. Embeddings may be (N, Q, 0). ``class_predictions`` is empty if
            the source does not name its masks.
        """
        raise NotImplementedError
