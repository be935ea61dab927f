"""Masks of SAM and SAM 2: one prompt at every point of a grid."""

from collections.abc import Mapping
from typing import Any

import torch
from mmdet.structures import DetDataSample
from torch import Tensor

from odise_mm.models.frozen import FrozenModule
from odise_mm.models.proposals.base import MASK_LOGIT, ImageMaskSource, Proposals
from odise_mm.models.proposals.sam_models import build_sam, image_processor, sam_folder
from odise_mm.registry import MODELS
from odise_mm.utils.settings import check_number, check_weight, check_whole
from odise_mm.vocabulary import Vocabulary


@MODELS.register_module()
class SamProposals(ImageMaskSource, FrozenModule):
    """Class-agnostic masks of SAM (arXiv 2304.02643) or SAM 2 (arXiv 2408.00714).

    Automatic mask generation with transformers' models: every point of a grid is a prompt with
    three masks; masks with a low predicted IoU or a low stability are dropped, and duplicates are
    removed by non-maximum suppression of their boxes. Preparation of images, thresholds and
    suppression are those of transformers' image processors.

    The grid is our own. In transformers 5.18, the grid of SAM 2 covers only a part of an image that
    is not square: points are scaled as for SAM, which keeps the aspect ratio, but SAM 2 resizes
    images to a square.

    The score of a mask is the predicted IoU, limited to [0, 1].

    Public weights (Apache-2.0): ``facebook/sam-vit-base``, ``-large`` and ``-huge``, and
    ``facebook/sam2.1-hiera-tiny``, ``-small``, ``-base-plus`` and ``-large``. They are frozen and
    not saved in checkpoints.

    Args:
        weights: hub id, or a folder with ``config.json`` and ``model.safetensors``; other formats
            are not read. None: random weights, see ``arch``.
        arch: for random weights: ``model_type`` (``sam`` or ``sam2``) and the fields of
            transformers' ``SamConfig`` or ``Sam2Config`` that differ from its defaults.
        points_per_side: the grid has the square of this number of points.
        points_per_batch: number of points that are decoded at a time. It limits memory: each has
            three masks of the size of the image.
        iou_threshold: the predicted IoU of a mask must be larger.
        stability_threshold: the stability of a mask must be larger: the area at a higher threshold
            divided by the area at a lower one.
        stability_offset: distance of these two thresholds from 0, as a logit.
        nms_threshold: of two boxes with a larger IoU, the one with the lower score is dropped.

    Raises:
        ConfigError: a setting is not allowed, or the weights are of another model.
        CheckpointError: the weights are missing or cannot be downloaded.
    """

    @classmethod
    def fetch_weights(cls, weights: str | None = None, **_: Any) -> None:
        """See :meth:`FrozenModule.fetch_weights`."""
        if weights is not None:
            sam_folder(cls.__name__, weights)

    def __init__(
        self,
        weights: str | None = None,
        arch: Mapping[str, Any] | None = None,
        points_per_side: int = 32,
        points_per_batch: int = 64,
        iou_threshold: float = 0.88,
        stability_threshold: float = 0.95,
        stability_offset: float = 1.0,
        nms_threshold: float = 0.7,
    ) -> None:
        super().__init__()
        check_whole("points_per_side", points_per_side)
        check_whole("points_per_batch", points_per_batch)
        check_weight("iou_threshold", iou_threshold)
        check_weight("stability_threshold", stability_threshold)
        check_number("stability_offset", stability_offset)
        check_weight("nms_threshold", nms_threshold)
        self.points_per_side = points_per_side
        self.points_per_batch = points_per_batch
        self.iou_threshold = iou_threshold
        self.stability_threshold = stability_threshold
        self.stability_offset = stability_offset
        self.nms_threshold = nms_threshold
        self.model = build_sam(type(self).__name__, weights, arch, ("Sam", "Sam2"))
        self.processor = _processor(self.model.config)
        self.freeze()

    def cast(self, dtype: torch.dtype) -> None:
        """See :meth:`FrozenModule.cast`; all tensors are cast, as transformers expects."""
        self.model.to(dtype)

    def compile_parts(self, **options: Any) -> None:
        """Compile the image encoder. The decoder is left out: its batches vary in size."""
        self.model.vision_encoder.compile(**options)

    def propose(
        self, image: Tensor, sample: DetDataSample | None, vocabulary: Vocabulary
    ) -> Proposals:
        """See :meth:`ImageMaskSource.propose`; only the image is used."""
        size = list(image.shape[-2:])
        # The images of a dataset have 8 bits, and so has the input of transformers' processor.
        levels = (image * 255).round().to(torch.uint8)
        inputs = self.processor(levels, input_data_format="channels_first", return_tensors="pt")
        pixels = inputs["pixel_values"].to(image.device, self.dtype)
        # Size of the image in the model's input; the rest of SAM's input is padding.
        reshaped = inputs.get("reshaped_input_sizes", [pixels.shape[-2:]])[0]
        found = []
        with self.own_precision():
            embeddings = self.model.get_image_embeddings(pixels)
            for points in self._grid(reshaped).to(image.device).split(self.points_per_batch):
                found.append(self._decode(embeddings, points, size, reshaped))
        masks, scores, boxes = zip(*found, strict=True)
        kept, best, *_ = self.processor.post_process_for_mask_generation(
            [mask for batch in masks for mask in batch],
            torch.cat(scores).cpu(),
            torch.cat(boxes).cpu(),
            self.nms_threshold,
        )
        inside = torch.stack(kept) if kept else torch.zeros(0, *size, dtype=torch.bool)
        logits = torch.where(inside.to(image.device), MASK_LOGIT, -MASK_LOGIT)
        return Proposals(logits, best.to(image.device).clamp(0, 1))

    def _grid(self, reshaped: Any) -> Tensor:
        """Return (N, 2) points x, y in pixels of the model's input, in rows."""
        count = self.points_per_side
        steps = (torch.arange(count) + 0.5) / count
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        return torch.stack([x * int(reshaped[1]), y * int(reshaped[0])], dim=-1).flatten(0, 1)

    def _decode(
        self, embeddings: Any, points: Tensor, size: list[int], reshaped: Any
    ) -> tuple[list[dict], Tensor, Tensor]:
        """Return masks (run lengths), scores and boxes of a batch of points."""
        outputs = self.model(
            image_embeddings=embeddings,
            input_points=points[None, :, None],
            input_labels=torch.ones(1, len(points), 1, dtype=torch.long, device=points.device),
        )
        (masks,) = self.processor.post_process_masks(
            outputs.pred_masks.float(),
            original_sizes=[size],
            reshaped_input_sizes=[tuple(map(int, reshaped))],
            binarize=False,
        )
        whole = torch.tensor([0, 0, size[1], size[0]], device=points.device)
        return self.processor.filter_masks(
            masks,
            outputs.iou_scores[0].float(),
            size,
            whole,
            pred_iou_thresh=self.iou_threshold,
            stability_score_thresh=self.stability_threshold,
            stability_score_offset=self.stability_offset,
        )


def _processor(config: Any) -> Any:
    """Return transformers' image processor with the input size of a model."""
    if config.model_type == "sam":
        edge = config.vision_config.image_size
        square = {"height": edge, "width": edge}
        return image_processor("Sam", {"longest_edge": edge}, pad_size=square)
    height, width = config.vision_config.backbone_config.image_size
    return image_processor("Sam2", {"height": height, "width": width})
