"""The whole model: five parts, each swapped by a line of the config.

image -> backbone (told by a captioner) -> neck -> head -> classifiers -> fusion -> results
                                                   |
                            losses of every layer, in training
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.dist import all_reduce
from mmengine.model import BaseModel
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from odise_mm.config.building import build_part
from odise_mm.errors import ConfigError, DatasetError, TrainingError
from odise_mm.models.frozen import FrozenModule
from odise_mm.models.heads.mask2former_head import MaskPrediction
from odise_mm.models.postprocess import (
    TEST_CFG,
    check_test_cfg,
    instance_inference,
    panoptic_inference,
    resize_masks,
    semantic_inference,
)
from odise_mm.models.segmentors.tiling import TileGrid
from odise_mm.registry import MODELS
from odise_mm.utils.precision import autocast, dtype_of
from odise_mm.utils.settings import check_whole
from odise_mm.vocabulary import Vocabulary

Pyramid = tuple[Tensor, ...]
MAX_STRIDE = 32  # of a pyramid


@MODELS.register_module()
class OpenVocabSegmentor(BaseModel):
    """Open-vocabulary panoptic, semantic and instance segmentation from one forward pass.

    ODISE, arXiv 2303.04803, figure 2. Parts are configs or modules. A part whose ``__init__`` asks
    for ``clip``, ``text_encoder``, ``in_channels``, ``in_strides``, ``empty_context``,
    ``time_width``, ``num_steps`` or ``prompt_encoder`` gets what the other parts have, unless its
    config says otherwise; so there is one CLIP, and channel counts stand nowhere twice.

    A forward pass changes nothing that others can see: several threads may call one model at once,
    each with names and settings of its own. Caches that they share are locked.

    Args:
        backbone: tiles, and a captioner's condition, to raw feature maps.
        neck: raw maps to a pyramid of strides 4, 8, 16, 32.
        head: pyramid to masks and mask embeddings.
        classifiers: opinions on the masks; the first is the model's own.
        fusion: opinions to class probabilities.
        vocabulary: the names to look for where a call brings none; ``model.vocabulary`` may be set
            at any time.
        clip: the one frozen CLIP, if any part wants one.
        text_encoder: config of the cache before its text tower.
        captioner: tiles to the backbone's condition; None for backbones that take none.
        grounding: loss between masks and the words of captions (caption supervision, a head with
            ``objectness``); None for label supervision, or where nothing is trained.
        tile_size: edge of the square tiles that the backbone sees; None: whole images.
        max_tiles_per_batch: tiles, of one image or several, that run together: bounds memory, does
            not change results.
        test_cfg: settings where a call brings none: ``overlap_threshold`` (a panoptic segment must
            keep this share of its mask), ``topk`` (instances kept before stuff is dropped),
            ``panoptic``, ``semantic``, ``instance`` (which results to make).
        data_preprocessor: config of mmdet's preprocessor, which pads to multiples of 64.

    Raises:
        ConfigError: ``grounding`` in a model that is made for labels; a setting that cannot be
            used.
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
        grounding: dict | nn.Module | None = None,
        tile_size: int | None = 512,
        max_tiles_per_batch: int = 4,
        test_cfg: dict[str, Any] | None = None,
        data_preprocessor: dict | nn.Module | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor)
        check_whole("max_tiles_per_batch", max_tiles_per_batch)
        if tile_size is not None:
            check_whole("tile_size", tile_size)
        if not classifiers or isinstance(classifiers, Mapping):
            raise ConfigError(f"classifiers={classifiers!r}: a list of at least one")
        self.test_cfg: dict[str, Any] = {**TEST_CFG, **check_test_cfg(test_cfg, TypeError)}
        shared: dict[str, Any] = {}
        if clip is not None:
            self.clip = shared["clip"] = build_part(clip, MODELS)
            text_encoder = text_encoder or {"type": "TextEncoder"}
            shared["text_encoder"] = build_part(text_encoder, MODELS, **shared)
        self.backbone = build_part(backbone, MODELS, **shared)
        self._check_sizes(tile_size)
        shared.update(self.backbone.describe())
        self.captioner = captioner and build_part(captioner, MODELS, **shared)
        self.neck = build_part(neck, MODELS, **shared)
        self.head = build_part(head, MODELS, in_channels=[self.neck.out_channels] * 4)
        self.classifiers = nn.ModuleList(build_part(c, MODELS, **shared) for c in classifiers)
        self.fusion = build_part(fusion, MODELS)
        self.grounding = grounding and build_part(grounding, MODELS)
        if self.grounding is not None and not self._learns_objects_only:
            raise ConfigError(
                "grounding is for caption supervision: give the head objectness=True and the first "
                "classifier null_class=False, or leave grounding out to train with labels"
            )
        self.tile_size = tile_size
        self.max_tiles_per_batch = max_tiles_per_batch
        self.vocabulary = vocabulary
        self.precision = "fp32"

    def _check_sizes(self, tile_size: int | None) -> None:
        """Refuse tiles, and padding, that feature maps of whole steps cannot be made of."""
        divisor = math.lcm(MAX_STRIDE, getattr(self.backbone, "tile_divisor", 1))
        if tile_size is not None and tile_size % divisor:
            raise ConfigError(
                f"tile_size={tile_size}: a multiple of {divisor} pixels, or None for whole images"
            )
        needed = divisor if tile_size is None else MAX_STRIDE
        padding = getattr(self.data_preprocessor, "pad_size_divisor", needed)
        check_whole("data_preprocessor.pad_size_divisor", padding)
        if padding % needed:
            raise ConfigError(
                f"data_preprocessor.pad_size_divisor={padding}: a multiple of {needed} pixels"
            )

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

    @property
    def _learns_objects_only(self) -> bool:
        """Whether names come from captions, so that the head itself tells objects from void."""
        has_null = getattr(self.classifiers[0], "null_embedding", None) is not None
        return getattr(self.head, "cls_embed", None) is not None and not has_null

    def test_step(
        self,
        data: dict[str, Any],
        vocabulary: str | Vocabulary | None = None,
        test_cfg: Mapping[str, Any] | None = None,
    ) -> list[DetDataSample]:
        """As mmengine's: preprocess a batch as a data loader gives it, then :meth:`predict`."""
        data = self.data_preprocessor(data, False)
        return self(**data, mode="predict", vocabulary=vocabulary, test_cfg=test_cfg)

    def forward(
        self,
        inputs: Tensor,
        data_samples: Sequence[DetDataSample],
        mode: str = "predict",
        vocabulary: str | Vocabulary | None = None,
        test_cfg: Mapping[str, Any] | None = None,
    ) -> list[DetDataSample] | dict[str, Tensor]:
        """mmengine's entry: ``predict`` gives results, ``loss`` what is to be minimised.

        Args:
            inputs: (B, 3, H, W) in [0, 1], RGB, padded at bottom and right.
            data_samples: with ``img_shape``, ``pad_shape`` and ``ori_shape``; see :meth:`loss`
                for what training needs.
            vocabulary, test_cfg: of this call, see :meth:`predict`; losses have no ``test_cfg``.

        Returns:
            See :meth:`predict` and :meth:`loss`.
        """
        if mode == "predict":
            return self.predict(inputs, data_samples, vocabulary, test_cfg)
        if mode == "loss":
            return self.loss(inputs, data_samples, vocabulary)
        raise ValueError(f"mode={mode!r}: OpenVocabSegmentor knows mode='predict' and mode='loss'")

    def loss(
        self,
        inputs: Tensor,
        data_samples: Sequence[DetDataSample],
        vocabulary: str | Vocabulary | None = None,
    ) -> dict[str, Tensor]:
        """Losses after every decoder layer, those of the queries before the first included.

        With labels, the classes are those of the vocabulary. With captions (``grounding``), every
        segment is an "object", and names are learned from words.

        Args:
            inputs: (B, 3, H, W) in [0, 1], RGB, padded at bottom and right.
            data_samples: with ``gt_instances``: ``labels`` (N,), class indices, and ``masks`` of
                things and stuff (mmdet's ``BitmapMasks``, or (N, H, W)); N may be 0. For captions
                also metainfo ``words``: words of one caption, as many for every image, or none.
            vocabulary: the classes; None: the model's.

        Returns:
            Scalars: ``loss_cls``, ``loss_mask``, ``loss_dice`` and, with captions,
            ``loss_grounding`` of the last layer; ``d0.loss_cls`` and so on of the others.

        Raises:
            DatasetError: a sample without masks or words, or with labels that the vocabulary lacks.
            TrainingError: the model is not configured for training.
        """
        classifier = self.classifiers[0]
        if self.grounding is None and getattr(self.head, "cls_embed", None) is not None:
            raise TrainingError(
                "a head with objectness=True is trained with captions: add "
                "grounding=dict(type='GroundingLoss') to the model, or drop objectness"
            )
        objects_only = self.grounding is not None
        vocabulary = self._names(vocabulary)
        count = None if objects_only else len(vocabulary)
        targets = [_targets(sample, inputs, count) for sample in data_samples]
        words = _words(data_samples) if objects_only else []
        with autocast(inputs, self.precision), _current(inputs.device):
            pyramid = _stack(self.extract_pyramids(list(inputs), _captions(data_samples)))
            predictions = self.head(pyramid, all_layers=True)
            embeddings = [prediction.embeddings for prediction in predictions]
            if not objects_only:
                logits = classifier.supervised_logits(embeddings, vocabulary)
                return self.head.losses(predictions, logits, targets)
            logits = [prediction.objectness for prediction in predictions]
            losses = self.head.losses(predictions, logits, targets)
            return losses | self._grounding_losses(embeddings, words)

    def _grounding_losses(
        self, embeddings: Sequence[Tensor], words: Sequence[Sequence[str]]
    ) -> dict[str, Tensor]:
        """Of every layer, named like the head's losses; no words of a caption: an empty list."""
        device = embeddings[0].device
        longest = torch.tensor(max(map(len, words)), device=device)
        all_reduce(longest, op="max")  # the embeddings of all processes are joined
        count = max(int(longest), 1)
        valid = torch.tensor([[bool(caption)] * count for caption in words], device=device)
        filled = [list(caption) or [""] * count for caption in words]
        text = self.classifiers[0].word_embeddings(filled)
        names = [f"d{i}.loss_grounding" for i in range(len(embeddings) - 1)] + ["loss_grounding"]
        return {
            name: self.grounding(layer, text, valid, self.classifiers[0].scale)
            for name, layer in zip(names, embeddings, strict=True)
        }

    @torch.no_grad()
    def predict(
        self,
        inputs: Tensor,
        data_samples: Sequence[DetDataSample],
        vocabulary: str | Vocabulary | None = None,
        test_cfg: Mapping[str, Any] | None = None,
    ) -> list[DetDataSample]:
        """Segment a batch; images of different size are independent of each other.

        Results of each sample, at ``ori_shape``: ``pred_panoptic_seg`` (``sem_seg``, (1, H, W)
        int32 of segment ids, 0 for none, and ``segments_info`` in its metainfo), ``pred_sem_seg``
        (``sem_seg``, (1, H, W) of class indices) and ``pred_instances`` (``masks``, ``labels``,
        ``scores``, ``bboxes``).

        Args:
            inputs: (B, 3, H, W) in [0, 1], RGB, padded at bottom and right.
            data_samples: with ``img_shape``, ``pad_shape`` and ``ori_shape``.
            vocabulary: the names to look for in this call, or the name or file of such; None: the
                model's.
            test_cfg: settings of this call; those that it leaves out are the model's.

        Raises:
            FloatingPointError: masks are not finite (broken weights, or float16 overflowed).
            VocabularyError: no vocabulary of that name.
            ConfigError: an unknown setting, or a value that it cannot have.
        """
        # Taken once: what others set on the model meanwhile is for later calls.
        vocabulary, test_cfg = self._names(vocabulary), self._settings(test_cfg)
        padded, images = [], []
        for image, sample in zip(inputs, data_samples, strict=True):
            padded.append(image[:, : sample.pad_shape[0], : sample.pad_shape[1]])
            images.append(image[:, : sample.img_shape[0], : sample.img_shape[1]])
        with autocast(inputs, self.precision), _current(inputs.device):
            pyramids = dict(enumerate(self.extract_pyramids(padded, _captions(data_samples))))
        for members in _groups([image.shape for image in padded]):
            # Taken out as it is used: a pyramid is large.
            pyramid = _stack([pyramids.pop(i) for i in members])
            with autocast(inputs, self.precision), _current(inputs.device):
                prediction = self.head(pyramid)[-1]
                probabilities = self.classify(prediction, [images[i] for i in members], vocabulary)
            if not torch.isfinite(prediction.masks).all() or not probabilities.isfinite().all():
                raise FloatingPointError(
                    f"the model's masks are not finite numbers at precision {self.precision}: "
                    "the weights are broken, or float16 overflowed (take bf16 or fp32)"
                )
            for i, masks, scores in zip(members, prediction.masks, probabilities, strict=True):
                self._add_results(data_samples[i], masks, scores, vocabulary, test_cfg)
        return list(data_samples)

    def extract_pyramids(
        self, images: Sequence[Tensor], captions: Sequence[str | None] | None = None
    ) -> list[Pyramid]:
        """Feature pyramids of padded images (3, H, W); tiles of all images share batches.

        Args:
            images: each (3, H, W) in [0, 1].
            captions: what people wrote about each image, where known; for captioners that use it.

        Returns:
            For every image strides 4, 8, 16, 32, each (C, H / stride, W / stride).
        """
        grids = [TileGrid.of(tuple(image.shape[-2:]), self.tile_size) for image in images]
        pyramids: list[Pyramid] = [()] * len(images)
        for members in _groups([grid.tile for grid in grids]):
            tiles = torch.cat([grids[i].cut(images[i]) for i in members])
            known = [
                captions[i] if captions else None for i in members for _ in range(len(grids[i]))
            ]
            step = self.max_tiles_per_batch
            batches = [
                self.extract_tile_features(
                    tiles[first : first + step],
                    grids[members[0]].tile,
                    known[first : first + step],
                )
                for first in range(0, len(tiles), step)
            ]
            levels = [torch.cat(level) for level in zip(*batches, strict=True)]
            counts = [len(grids[i]) for i in members]
            per_image = zip(*(level.split(counts) for level in levels), strict=True)
            for i, maps in zip(members, per_image, strict=True):
                pyramids[i] = tuple(grids[i].join(level) for level in maps)
        return pyramids

    def extract_tile_features(
        self,
        tiles: Tensor,
        size: tuple[int, int],
        captions: Sequence[str | None] | None = None,
    ) -> Pyramid:
        """Captioner, backbone and neck on one batch of tiles, which are ``size`` in the image."""
        condition = () if self.captioner is None else (self.captioner(tiles, captions),)
        return self.neck(self.backbone(tiles, *condition), size)

    def classify(
        self,
        prediction: MaskPrediction,
        images: Sequence[Tensor],
        vocabulary: str | Vocabulary | None = None,
    ) -> Tensor:
        """Probabilities of the vocabulary's classes and of void, (B, Q, K + 1).

        Args:
            prediction: the head's, for B images of one padded size.
            images: the unpadded images, (3, H, W) in [0, 1].
            vocabulary: the classes; None: the model's.
        """
        vocabulary = self._names(vocabulary)
        opinions = [c(prediction, images, vocabulary) for c in self.classifiers]
        return self.fusion(opinions, vocabulary)

    def _names(self, vocabulary: str | Vocabulary | None) -> Vocabulary:
        return self.vocabulary if vocabulary is None else _as_vocabulary(vocabulary)

    def _settings(self, test_cfg: Mapping[str, Any] | None) -> dict[str, Any]:
        return {**self.test_cfg, **check_test_cfg(test_cfg)}

    def _add_results(
        self,
        sample: DetDataSample,
        masks: Tensor,
        scores: Tensor,
        vocabulary: Vocabulary,
        test_cfg: Mapping[str, Any],
    ) -> None:
        masks = resize_masks(
            masks.float(), sample.pad_shape[:2], sample.img_shape[:2], sample.ori_shape[:2]
        )
        add_results(sample, masks, scores, vocabulary, test_cfg)

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


def add_results(
    sample: DetDataSample,
    masks: Tensor,
    scores: Tensor,
    vocabulary: Vocabulary,
    test_cfg: Mapping[str, Any],
) -> None:
    """Write one image's results into its sample, as :meth:`OpenVocabSegmentor.predict` says.

    Args:
        sample: of the image.
        masks: logits at the size of the result, (Q, H, W) float32.
        scores: probabilities of the K classes and of void, (Q, K + 1).
        vocabulary: the K classes.
        test_cfg: all settings of the segmentor's ``test_cfg``.
    """
    names, is_thing = vocabulary.names, vocabulary.is_thing
    if test_cfg["panoptic"]:
        ids, segments = panoptic_inference(scores, masks, is_thing, test_cfg["overlap_threshold"])
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
        sample.pred_panoptic_seg = PixelData(sem_seg=ids[None], metainfo=dict(segments_info=info))
    if test_cfg["semantic"]:
        sample.pred_sem_seg = PixelData(sem_seg=semantic_inference(scores, masks)[None])
    if test_cfg["instance"]:
        values, labels, binary, boxes = instance_inference(
            scores, masks, is_thing, test_cfg["topk"]
        )
        sample.pred_instances = InstanceData(
            scores=values, labels=labels, masks=binary, bboxes=boxes
        )


def _as_vocabulary(vocabulary: str | Vocabulary) -> Vocabulary:
    return vocabulary if isinstance(vocabulary, Vocabulary) else Vocabulary.load(vocabulary)


def _current(device: torch.device) -> AbstractContextManager:
    """Make a GPU the current one: mmcv's compiled kernels run there, wherever the tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _captions(samples: Sequence[DetDataSample]) -> list[str | None]:
    """What people wrote about each image, where the data set knows."""
    return [sample.metainfo.get("caption") for sample in samples]


def _targets(sample: DetDataSample, inputs: Tensor, num_classes: int | None) -> InstanceData:
    """Labels and masks (N, H, W) bool of a sample, padded like the image; None: all "objects"."""
    name = sample.metainfo.get("img_path", "a sample")
    found = sample.get("gt_instances")
    missing = [key for key in ("labels", "masks") if found is None or key not in found]
    if missing:
        raise DatasetError(
            f"{name} has no gt_instances.{missing[0]}: training needs the masks and labels of all "
            "segments (PanopticMapToMasks and PackDetInputs in the training pipeline)"
        )
    labels, masks = found.labels.to(inputs.device, torch.long), found.masks
    if isinstance(masks, BitmapMasks):
        masks = masks.to_tensor(torch.bool, inputs.device)
    height, width = inputs.shape[-2:]
    bottom, right = height - masks.shape[-2], width - masks.shape[-1]
    if len(labels) != len(masks) or bottom < 0 or right < 0:
        raise DatasetError(
            f"{name}: {len(labels)} labels, {len(masks)} masks of {masks.shape[-2]} x "
            f"{masks.shape[-1]} pixels, an image padded to {height} x {width}; these do not fit "
            "together"
        )
    if num_classes is None:
        labels = torch.zeros_like(labels)
    elif len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise DatasetError(
            f"{name} has labels from {int(labels.min())} to {int(labels.max())}, but the model's "
            f"vocabulary has {num_classes} classes: train with the data set's own vocabulary"
        )
    padded = F.pad(masks.to(inputs.device, torch.bool), (0, right, 0, bottom))
    return InstanceData(labels=labels, masks=padded)


def _words(samples: Sequence[DetDataSample]) -> list[Sequence[str]]:
    """The words of every sample's caption; equally many, or none."""
    for sample in samples:
        if "words" not in sample.metainfo:
            raise DatasetError(
                f"{sample.metainfo.get('img_path', 'a sample')} comes without words, and caption "
                "supervision learns names from them: give the data set a phrases_file, put "
                "DrawWords into the training pipeline and 'words' into PackDetInputs' meta_keys"
            )
    words = [sample.metainfo["words"] for sample in samples]
    counts = sorted({len(caption) for caption in words if caption})
    if len(counts) > 1:
        raise DatasetError(
            f"images of one batch have {counts[0]} and {counts[-1]} words: draw equally many for "
            "all that have any (DrawWords)"
        )
    return words


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
