"""The whole model: five parts, each swapped by a line of the config.

image -> backbone (told by a captioner) -> neck -> head -> classifiers -> fusion -> results
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.model import BaseModel
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from odise_mm.datasets.vocabulary import Vocabulary
from odise_mm.models.heads.mask2former_head import MaskPrediction
from odise_mm.models.postprocess import (
    instance_inference,
    panoptic_inference,
    resize_masks,
    semantic_inference,
)
from odise_mm.registry import MODELS
from odise_mm.utils.frozen import FrozenModule, build_part
from odise_mm.utils.precision import autocast, dtype_of
from odise_mm.utils.tiling import TileGrid

Pyramid = tuple[Tensor, ...]


@MODELS.register_module()
class OpenVocabSegmentor(BaseModel):
    """Open-vocabulary panoptic, semantic and instance segmentation from one forward pass.

    ODISE, arXiv 2303.04803, figure 2. Parts are configs or modules. A part whose ``__init__`` asks
    for ``clip``, ``text_encoder``, ``in_channels``, ``in_strides``, ``empty_context``,
    ``time_width`` or ``num_steps`` gets what the other parts have, unless its config says
    otherwise; so there is one CLIP, and channel counts stand nowhere twice.

    Args:
        backbone: tiles, and a captioner's condition, to raw feature maps.
        neck: raw maps to a pyramid of strides 4, 8, 16, 32.
        head: pyramid to masks and mask embeddings.
        classifiers: opinions on the masks; the first is the model's own.
        fusion: opinions to class probabilities.
        vocabulary: the names to look for at first; ``model.vocabulary`` may be set at any time.
        clip: the one frozen CLIP, if any part wants one.
        text_encoder: config of the cache before its text tower.
        captioner: tiles to the backbone's condition; None for backbones that take none.
        tile_size: edge of the square tiles that the backbone sees; None: whole images.
        max_tiles_per_batch: tiles, of one image or several, that run together: bounds memory, does
            not change results.
        test_cfg: ``overlap_threshold`` (a panoptic segment must keep this share of its mask),
            ``topk`` (instances kept before stuff is dropped), ``panoptic``, ``semantic``,
            ``instance`` (which results to make).
        data_preprocessor: config of mmdet's preprocessor, which pads to multiples of 64.
    """

    def __init__(
        self,
        backbone: dict | nn.Module,
        neck: dict | nn.Module,
        head: dict | nn.Module,
        classifiers: Sequence[dict | nn.Module],
        fusion: dict | nn.Module,
        vocabulary: str | Vocabulary = "coco",
        clip: dict | nn.Module | None = None,
        text_encoder: dict | None = None,
        captioner: dict | nn.Module | None = None,
        tile_size: int | None = 512,
        max_tiles_per_batch: int = 4,
        test_cfg: dict[str, Any] | None = None,
        data_preprocessor: dict | nn.Module | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor)
        if max_tiles_per_batch < 1:
            raise ValueError(f"max_tiles_per_batch={max_tiles_per_batch}: at least 1")
        shared: dict[str, Any] = {}
        if clip is not None:
            self.clip = shared["clip"] = build_part(clip, MODELS)
            text_encoder = text_encoder or {"type": "TextEncoder"}
            shared["text_encoder"] = build_part(text_encoder, MODELS, **shared)
        self.backbone = build_part(backbone, MODELS, **shared)
        shared.update(self.backbone.describe())
        self.captioner = captioner and build_part(captioner, MODELS, **shared)
        self.neck = build_part(neck, MODELS, **shared)
        self.head = build_part(head, MODELS, in_channels=[self.neck.out_channels] * 4)
        self.classifiers = nn.ModuleList(build_part(c, MODELS, **shared) for c in classifiers)
        self.fusion = build_part(fusion, MODELS)
        self.tile_size = tile_size
        self.max_tiles_per_batch = max_tiles_per_batch
        self.test_cfg = {
            "overlap_threshold": 0.8,
            "topk": 100,
            "panoptic": True,
            "semantic": True,
            "instance": True,
        }
        unknown = set(test_cfg or {}) - set(self.test_cfg)
        if unknown:
            raise TypeError(
                f"test_cfg has no {', '.join(sorted(unknown))}; it has {', '.join(self.test_cfg)}"
            )
        self.test_cfg.update(test_cfg or {})
        self.vocabulary = vocabulary
        self.precision = "fp32"

    @property
    def vocabulary(self) -> Vocabulary:
        """The names to look for. Set a Vocabulary, a built-in name or a file."""
        return self._vocabulary

    @vocabulary.setter
    def vocabulary(self, vocabulary: str | Vocabulary) -> None:
        if not isinstance(vocabulary, Vocabulary):
            vocabulary = Vocabulary.load(vocabulary)
        self._vocabulary = vocabulary

    @property
    def dataset_meta(self) -> dict[str, Any]:
        """The vocabulary as mmdet's metainfo, for visualizers and metrics."""
        return self.vocabulary.metainfo

    def forward(
        self, inputs: Tensor, data_samples: Sequence[DetDataSample], mode: str = "predict"
    ) -> list[DetDataSample]:
        """mmengine's entry; ``predict`` is the mode that this model knows.

        Args:
            inputs: (B, 3, H, W) in [0, 1], RGB, padded at bottom and right.
            data_samples: with ``img_shape``, ``pad_shape`` and ``ori_shape``.

        Returns:
            The same samples with ``pred_panoptic_seg``, ``pred_sem_seg``, ``pred_instances``.
        """
        if mode != "predict":
            raise ValueError(f"mode={mode!r}: OpenVocabSegmentor knows mode='predict'")
        return self.predict(inputs, data_samples)

    @torch.no_grad()
    def predict(self, inputs: Tensor, data_samples: Sequence[DetDataSample]) -> list[DetDataSample]:
        """Segment a batch; images of different size are independent of each other.

        Results of each sample, at ``ori_shape``: ``pred_panoptic_seg`` (``sem_seg``, (1, H, W)
        int32 of segment ids, 0 for none, and ``segments_info`` in its metainfo), ``pred_sem_seg``
        (``sem_seg``, (1, H, W) of class indices) and ``pred_instances`` (``masks``, ``labels``,
        ``scores``, ``bboxes``).

        Raises:
            FloatingPointError: masks are not finite (broken weights, or float16 overflowed).
        """
        padded, images = [], []
        for image, sample in zip(inputs, data_samples, strict=True):
            padded.append(image[:, : sample.pad_shape[0], : sample.pad_shape[1]])
            images.append(image[:, : sample.img_shape[0], : sample.img_shape[1]])
        with autocast(inputs, self.precision), _current(inputs.device):
            pyramids = dict(enumerate(self.extract_pyramids(padded)))
        for members in _groups([image.shape for image in padded]):
            # Taken out as it is used: a pyramid is large.
            pyramid = _stack([pyramids.pop(i) for i in members])
            with autocast(inputs, self.precision), _current(inputs.device):
                prediction = self.head(pyramid)[-1]
                probabilities = self.classify(prediction, [images[i] for i in members])
            if not torch.isfinite(prediction.masks).all() or not probabilities.isfinite().all():
                raise FloatingPointError(
                    f"the model's masks are not finite numbers at precision {self.precision}: "
                    "the weights are broken, or float16 overflowed (take bf16 or fp32)"
                )
            for i, masks, scores in zip(members, prediction.masks, probabilities, strict=True):
                self._add_results(data_samples[i], masks, scores)
        return list(data_samples)

    def extract_pyramids(self, images: Sequence[Tensor]) -> list[Pyramid]:
        """Feature pyramids of padded images (3, H, W); tiles of all images share batches.

        Returns:
            For every image strides 4, 8, 16, 32, each (C, H / stride, W / stride).
        """
        grids = [TileGrid.of(tuple(image.shape[-2:]), self.tile_size) for image in images]
        pyramids: list[Pyramid] = [()] * len(images)
        for members in _groups([grid.tile for grid in grids]):
            tiles = torch.cat([grids[i].cut(images[i]) for i in members])
            batches = [
                self.extract_tile_features(batch, grids[members[0]].tile)
                for batch in tiles.split(self.max_tiles_per_batch)
            ]
            levels = [torch.cat(level) for level in zip(*batches, strict=True)]
            counts = [len(grids[i]) for i in members]
            per_image = zip(*(level.split(counts) for level in levels), strict=True)
            for i, maps in zip(members, per_image, strict=True):
                pyramids[i] = tuple(grids[i].join(level) for level in maps)
        return pyramids

    def extract_tile_features(self, tiles: Tensor, size: tuple[int, int]) -> Pyramid:
        """Captioner, backbone and neck on one batch of tiles, which are ``size`` in the image."""
        condition = () if self.captioner is None else (self.captioner(tiles),)
        return self.neck(self.backbone(tiles, *condition), size)

    def classify(self, prediction: MaskPrediction, images: Sequence[Tensor]) -> Tensor:
        """Probabilities of the vocabulary's classes and of void, (B, Q, K + 1).

        Args:
            prediction: the head's, for B images of one padded size.
            images: the unpadded images, (3, H, W) in [0, 1].
        """
        opinions = [c(prediction, images, self.vocabulary) for c in self.classifiers]
        return self.fusion(opinions, self.vocabulary)

    def _add_results(self, sample: DetDataSample, masks: Tensor, scores: Tensor) -> None:
        masks = resize_masks(
            masks.float(), sample.pad_shape[:2], sample.img_shape[:2], sample.ori_shape[:2]
        )
        cfg, names, is_thing = self.test_cfg, self.vocabulary.names, self.vocabulary.is_thing
        if cfg["panoptic"]:
            ids, segments = panoptic_inference(scores, masks, is_thing, cfg["overlap_threshold"])
            info = [
                dict(
                    id=segment.id,
                    category_id=segment.label,
                    category_name=names[segment.label],
                    isthing=segment.is_thing,
                    score=segment.score,
                    area=segment.area,
                )
                for segment in segments
            ]
            sample.pred_panoptic_seg = PixelData(
                sem_seg=ids[None], metainfo=dict(segments_info=info)
            )
        if cfg["semantic"]:
            sample.pred_sem_seg = PixelData(sem_seg=semantic_inference(scores, masks)[None])
        if cfg["instance"]:
            values, labels, binary, boxes = instance_inference(scores, masks, is_thing, cfg["topk"])
            sample.pred_instances = InstanceData(
                scores=values, labels=labels, masks=binary, bboxes=boxes
            )

    def set_precision(self, precision: str) -> "OpenVocabSegmentor":
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

    def compile_frozen(self, **options: Any) -> "OpenVocabSegmentor":
        """Run the frozen parts through ``torch.compile``; the first call takes minutes.

        ``options`` are that function's (``backend``, ``mode``, ...).
        """
        for part in {id(p): p for p in self.modules() if isinstance(p, FrozenModule)}.values():
            part.compile_parts(**options)
        return self


def _current(device: torch.device) -> AbstractContextManager:
    """Make a GPU the current one: mmcv's compiled kernels run there, wherever the tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _stack(pyramids: list[Pyramid]) -> Pyramid:
    """One pyramid with a batch axis from those of several images; of one image without copying."""
    if len(pyramids) == 1:
        return tuple(level[None] for level in pyramids[0])
    return tuple(torch.stack(level) for level in zip(*pyramids, strict=True))


def _groups(keys: Sequence[Any]) -> list[list[int]]:
    """Indices of equal keys, in order of first occurrence."""
    groups: dict[Any, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(tuple(key), []).append(index)
    return list(groups.values())
