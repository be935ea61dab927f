"""mmdet's visualizer with this package's drawing of panoptic results."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.dist import master_only
from mmengine.structures import PixelData

from odise_mm.registry import VISUALIZERS
from odise_mm.structures import SegmentationResult
from odise_mm.utils.settings import check_choice, check_flag, check_weight
from odise_mm.visualization.panoptic import FILLS, draw_panoptic


@VISUALIZERS.register_module()
class OpenVocabVisualizer(DetLocalVisualizer):
    """Visualizer that draws panoptic maps with :func:`draw_panoptic`.

    Samples without a panoptic map are drawn as in mmdet.

    Args:
        name: name of the instance.
        fill, fill_alpha: color and opacity of the segments, see ``fill`` and ``alpha`` of
            :func:`draw_panoptic`.
        legend: see :func:`draw_panoptic`.
        **kwargs: arguments of ``DetLocalVisualizer``.
    """

    def __init__(
        self,
        name: str = "visualizer",
        *,
        fill: str = "class",
        fill_alpha: float | None = None,
        legend: bool | None = False,
        **kwargs: Any,
    ) -> None:
        check_choice("fill", fill, FILLS)
        if fill_alpha is not None:
            check_weight("fill_alpha", fill_alpha)
        if legend is not None:
            check_flag("legend", legend)
        super().__init__(name, **kwargs)
        self.fill = fill
        self.fill_alpha = fill_alpha
        self.legend = legend

    @classmethod
    def get_instance(cls, name: str = "visualizer", **kwargs: Any) -> OpenVocabVisualizer:
        """Extend mmengine's method: the name is optional.

        Configs of this package set no name, so that every runner gets a separate visualizer. In
        that case, mmdet's tools call this method without a name.
        """
        return super().get_instance(name, **kwargs)

    @master_only
    def add_datasample(
        self,
        name: str,
        image: np.ndarray,
        data_sample: DetDataSample | None = None,
        draw_gt: bool = True,
        draw_pred: bool = True,
        **kwargs: Any,
    ) -> None:
        """Draw a sample as in mmdet, but without other masks on top of a panoptic map.

        Args:
            name: name of the image.
            image: (H, W, 3) RGB.
            data_sample: sample with ``gt_panoptic_seg``, ``pred_panoptic_seg`` or both.
            draw_gt: whether to draw the ground truth, on the left.
            draw_pred: whether to draw the prediction.
            **kwargs: ``show``, ``out_file``, ``step``, ... of mmdet's method.
        """
        if data_sample is not None:
            data_sample = data_sample.cpu().clone()
            for kind in ("gt", "pred"):
                if f"{kind}_panoptic_seg" in data_sample:
                    for other in (f"{kind}_instances", f"{kind}_sem_seg"):
                        if other in data_sample:
                            delattr(data_sample, other)
        super().add_datasample(name, image, data_sample, draw_gt, draw_pred, **kwargs)

    def _draw_panoptic_seg(
        self,
        image: np.ndarray,
        panoptic_seg: PixelData,
        classes: list[str] | None,
        palette: list | None = None,
    ) -> np.ndarray:
        result = SegmentationResult.from_panoptic(panoptic_seg, classes or ())
        return draw_panoptic(
            image,
            result,
            fill=self.fill,
            alpha=self.fill_alpha,
            legend=self.legend,
            channel_order="rgb",
        )
