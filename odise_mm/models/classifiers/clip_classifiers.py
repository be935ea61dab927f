"""Mask classification by CLIP (ODISE, equation 9, and the ablation of mask pooling)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odise_mm.config.building import build_part
from odise_mm.errors import ConfigError
from odise_mm.models.classifiers.base import (
    Classifier,
    ClassPrediction,
    best_synonyms,
    class_logits,
)
from odise_mm.models.clip.frozen_clip import FrozenCLIP
from odise_mm.models.clip.prompts import Template, templates_of
from odise_mm.models.clip.text_encoder import TextEncoder
from odise_mm.models.heads.mask2former_head import Frame, MaskPrediction
from odise_mm.models.image_sizes import resize_short_side, stack_padded
from odise_mm.models.postprocess import resize_masks
from odise_mm.registry import MODELS
from odise_mm.utils.precision import full_precision
from odise_mm.utils.settings import check_flag, check_whole
from odise_mm.vocabulary import Vocabulary

_STRIDE = 32  # of the last stage of a ConvNeXt
_MASKS_PER_BATCH = 25  # that are resized at a time; limits memory


class _CLIPClassifier(Classifier):
    """Base class: compares CLIP's mask embeddings with CLIP's text embeddings."""

    def __init__(
        self,
        clip: FrozenCLIP | dict,
        text_encoder: TextEncoder | dict | None = None,
        template: Template = "a photo of a {}.",
    ) -> None:
        super().__init__()
        templates_of(template)
        self.clip = build_part(clip, MODELS)
        self.text_encoder = build_part(
            text_encoder or {"type": "TextEncoder"}, MODELS, clip=self.clip
        )
        self.template = template

    @torch.no_grad()
    def forward(
        self, prediction: MaskPrediction, images: Sequence[Tensor], vocabulary: Vocabulary
    ) -> ClassPrediction:
        """See :class:`~odise_mm.models.classifiers.base.Classifier`; void is not predicted."""
        images = prediction.images_at_own_size(images)
        embeddings = self.embed_masks(prediction.masks, images, prediction.stride)
        return self.name_embeddings(embeddings, vocabulary)

    @torch.no_grad()
    def name_embeddings(self, embeddings: Tensor, vocabulary: Vocabulary) -> ClassPrediction:
        """Classify masks by their CLIP embeddings, (B, Q, C)."""
        text = self.text_encoder.of_vocabulary(vocabulary, self.template)
        logits = class_logits(embeddings, text, vocabulary, self.clip.logit_scale)
        return ClassPrediction(logits, embeddings=embeddings)

    def embed_masks(self, masks: Tensor, images: Sequence[Tensor], stride: int = 4) -> Tensor:
        """Compute the CLIP embeddings of masked regions.

        Args:
            masks: mask logits of the padded images, (B, Q, h, w).
            images: B unpadded images, each (3, H, W) in [0, 1].
            stride: pixels of an image per position of the masks.

        Returns:
            (B, Q, C) float32, not normalized.
        """
        raise NotImplementedError


@MODELS.register_module()
class MaskCLIPClassifier(_CLIPClassifier):
    """Pools CLIP's patches inside each mask with one extra class token per mask.

    The token of a mask starts as a copy of the class token. It attends to the class token and to
    the patches that its mask touches. No other token attends to it, so one pass over the image is
    enough for all masks (MaskCLIP, arXiv 2208.08984; ODISE, equation 9).

    Args:
        clip: a :class:`~odise_mm.models.clip.frozen_clip.FrozenCLIP` or its config.
        text_encoder: a :class:`~odise_mm.models.clip.text_encoder.TextEncoder` or its config.
        template: prompt around a class name.
        align: whether to crop the masks to the image before they are resized. The published model
            does not: it resizes the *unpadded* image, but the masks of the *padded* image. The two
            are then misaligned unless the sides of the image are multiples of 64. The published
            numbers were measured this way.

    Raises:
        ValueError: the image tower of the CLIP is not a ViT.
    """

    def __init__(
        self,
        clip: FrozenCLIP | dict,
        text_encoder: TextEncoder | dict | None = None,
        template: Template = "a photo of a {}.",
        align: bool = False,
    ) -> None:
        super().__init__(clip, text_encoder, template)
        check_flag("align", align)
        if not hasattr(self.clip.visual, "transformer"):
            raise ValueError(
                "MaskCLIPClassifier needs a CLIP whose image tower is a ViT, which CLIP "
                f"{self.clip.short_name} does not have; use CropCLIPClassifier"
            )
        self.align = align

    def embed_masks(self, masks: Tensor, images: Sequence[Tensor], stride: int = 4) -> Tensor:
        """Embed every mask by its mask token; see the base class for shapes."""
        size = self.clip.image_size
        resized = [_resize(image[None].float(), (size, size)) for image in images]
        patches = self._patches_touched(masks, images, stride)
        with self.clip.own_precision():
            return self._mask_tokens(self.clip.normalize(torch.cat(resized)), patches)

    def _patches_touched(self, masks: Tensor, images: Sequence[Tensor], stride: int) -> Tensor:
        """Compute which of CLIP's P patches each mask touches: (B, Q, P) bool."""
        size, patch = self.clip.image_size, self.clip.visual.patch_size[0]
        rows = []
        for mask, image in zip(masks, images, strict=True):
            height, width = size, size
            if self.align:
                height = round(size * mask.shape[-2] * stride / image.shape[-2])
                width = round(size * mask.shape[-1] * stride / image.shape[-1])
            resized = _resize(mask[None].float(), (height, width))[..., :size, :size]
            rows.append(F.max_pool2d(resized.sigmoid(), patch))
        return torch.cat(rows).flatten(2) >= 0.5

    def _mask_tokens(self, images: Tensor, patches: Tensor) -> Tensor:
        """Embed masks, given by patches (B, Q, P), of normalized images (B, 3, S, S): (B, Q, C)."""
        from odise_mm.models.clip.image_tower import attend_to_patches  # imports open_clip

        visual = self.clip.visual
        tokens = visual._embeds(images)  # after ln_pre; the class token is first
        tokens = torch.cat([tokens, tokens[:, :1].expand(-1, patches.shape[1], -1)], dim=1)
        return (visual.ln_post(attend_to_patches(visual, tokens, patches)) @ visual.proj).float()


@MODELS.register_module()
class PooledCLIPClassifier(_CLIPClassifier):
    """Averages the feature map of a convolutional CLIP inside each mask (FC-CLIP).

    The average passes the tower's own head, which CLIP applies to the average over the whole image
    (FC-CLIP, arXiv 2308.02487, section 3.2). A convolutional tower takes images of any size.

    Args:
        clip, text_encoder: as in :class:`MaskCLIPClassifier`.
        template: the prompt around a name, or a set of them (published: ``vild``).
        text_adapter: config of a :class:`~odise_mm.models.classifiers.text_adapters.TextAdapter`,
            which is trained; None: the names' embeddings are used as they are.
        shared: whether the feature map is the last level of the pyramid that the head reads: the
            backbone is then the image tower of the same CLIP, without a neck, and runs once for
            both. False: the tower runs on the image once more, for models with another backbone.

    Raises:
        ConfigError: a CLIP whose image tower is not convolutional.
    """

    def __init__(
        self,
        clip: FrozenCLIP | dict,
        text_encoder: TextEncoder | dict | None = None,
        template: Template = "vild",
        text_adapter: dict | nn.Module | None = None,
        shared: bool = True,
    ) -> None:
        super().__init__(clip, text_encoder, template)
        check_flag("shared", shared)
        trunk = getattr(self.clip.visual, "trunk", None)
        if not (hasattr(trunk, "stages") and hasattr(trunk, "forward_head")):
            raise ConfigError(
                f"PooledCLIPClassifier needs a CLIP with a ConvNeXt as image tower, and CLIP "
                f"{self.clip.short_name} has {type(trunk or self.clip.visual).__name__}: use "
                "MaskCLIPClassifier (ViT) or CropCLIPClassifier (any CLIP)"
            )
        self.reads_features = shared
        self.text_adapter = None
        if text_adapter is not None:
            self.text_adapter = build_part(
                text_adapter, MODELS, embed_dim=self.text_encoder.embed_dim
            )

    @property
    def scale(self) -> Tensor | float:
        """Factor on the product of mask and adapted text embeddings."""
        return self.clip.logit_scale

    def check_features(self, backbone: nn.Module, neck: nn.Module | None) -> None:
        """See :meth:`~odise_mm.models.classifiers.base.Classifier.check_features`."""
        shares = getattr(backbone, "tower", None) is self.clip.visual and neck is None
        if self.reads_features and not shares:
            raise ConfigError(
                "PooledCLIPClassifier with shared=True needs an OpenCLIPBackbone of the same CLIP "
                "and no neck: set backbone=dict(type='OpenCLIPBackbone') and neck=None, or "
                "shared=False to run CLIP once more"
            )

    def forward(
        self, prediction: MaskPrediction, images: Sequence[Tensor], vocabulary: Vocabulary
    ) -> ClassPrediction:
        """See :class:`~odise_mm.models.classifiers.base.Classifier`; void is not predicted.

        A trained tower and a text adapter get gradients, the masks do not.
        """
        features = prediction.features
        if not self.reads_features:
            images = prediction.images_at_own_size(images)
            features = self._feature_map(prediction.masks, images, prediction.stride)
        pooled, valid = pool_masks(features, prediction.masks)
        embeddings = self.embed_pooled(pooled)
        logits = self.logits_of(embeddings, features, vocabulary)
        return ClassPrediction(logits, valid=valid, embeddings=embeddings)

    def logits_of(self, embeddings: Tensor, features: Tensor, vocabulary: Vocabulary) -> Tensor:
        """Compute the logits of all classes.

        Args:
            embeddings: output of :meth:`embed_pooled`, (B, Q, ``embed_dim``).
            features: the feature map that was averaged, (B, C, h, w).
            vocabulary: the K classes.

        Returns:
            (B, Q, K) float32.
        """
        if self.text_adapter is None:
            text = self.text_encoder.of_vocabulary(vocabulary, self.template)
            return class_logits(embeddings, text, vocabulary, self.clip.logit_scale)
        text = self.adapt_text(features, vocabulary)
        with full_precision(embeddings):
            similarity = F.normalize(embeddings, dim=-1) @ text.transpose(1, 2)
        return best_synonyms(similarity * self.scale, vocabulary)

    def adapt_text(self, features: Tensor, vocabulary: Vocabulary) -> Tensor:
        """Adapt the embeddings of all S synonyms to B images.

        Args:
            features: of the tower's last stage, (B, C', h, w).
            vocabulary: the classes.

        Returns:
            (B, S, ``embed_dim``) float32; logits are products with them as they are.
        """
        text = self.text_encoder.of_vocabulary(vocabulary, self.template)
        return self.text_adapter(F.normalize(text, dim=-1), features, self.embed_pooled)

    def embed_pooled(self, pooled: Tensor) -> Tensor:
        """Apply the tower's head to averaged features.

        Args:
            pooled: averages of the tower's last stage, or single positions of it, (B, Q, C).

        Returns:
            (B, Q, ``embed_dim``) float32, not normalized.
        """
        visual = self.clip.visual
        with self.clip.own_precision():
            flat = pooled.flatten(0, 1).to(self.clip.dtype)[..., None, None]
            embedded = visual.head(visual.trunk.forward_head(flat))
        return embedded.float().unflatten(0, pooled.shape[:2])

    def _feature_map(self, masks: Tensor, images: Sequence[Tensor], stride: int) -> Tensor:
        """Run the tower on the padded images, whose size follows from the masks."""
        height, width = masks.shape[-2] * stride, masks.shape[-1] * stride
        batch = []
        for image in images:
            padding = (0, width - image.shape[-1], 0, height - image.shape[-2])
            batch.append(F.pad(self.clip.normalize(image), padding))
        with self.clip.own_precision():
            return self.clip.visual.trunk.forward_features(torch.stack(batch))


@MODELS.register_module()
class SoftMaskCLIPClassifier(PooledCLIPClassifier):
    """Averages the features of a convolutional CLIP, weighted by mask probability (MaskCLIP++).

    The tower runs on the image at a size of its own, and mask probabilities are resized to its
    feature map (MaskCLIP++, arXiv 2412.11464, section 3.2).

    Args:
        clip, text_encoder, template, text_adapter: as in :class:`PooledCLIPClassifier`.
        short_side: length in pixels that the short side of the image is resized to (bilinear).
        scaled: whether the logits of adapted names are scaled by CLIP's logit scale.
    """

    def __init__(
        self,
        clip: FrozenCLIP | dict,
        text_encoder: TextEncoder | dict | None = None,
        template: Template = "vild",
        text_adapter: dict | nn.Module | None = None,
        short_side: int = 640,
        scaled: bool = False,
    ) -> None:
        super().__init__(clip, text_encoder, template, text_adapter, shared=False)
        check_whole("short_side", short_side)
        check_flag("scaled", scaled)
        self.short_side = short_side
        self.scaled = scaled

    @property
    def scale(self) -> Tensor | float:
        """See :attr:`PooledCLIPClassifier.scale`."""
        return super().scale if self.scaled else 1.0

    @torch.no_grad()
    def forward(
        self, prediction: MaskPrediction, images: Sequence[Tensor], vocabulary: Vocabulary
    ) -> ClassPrediction:
        """See :class:`~odise_mm.models.classifiers.base.Classifier`; void is not predicted."""
        logits, embeddings = [], []
        # One by one: in a batch, padding to the size of other images would change the adapted text.
        for masks, image, frame in zip(
            prediction.masks, images, prediction.frames_of(images), strict=True
        ):
            resized = resize_short_side(self.clip.normalize(image), self.short_side)
            padded, ((height, width),) = stack_padded([resized], _STRIDE)
            with self.clip.own_precision():
                features = self.clip.visual.trunk.forward_features(padded.to(self.clip.dtype))
            weights = _soft_masks(masks, frame, resized.shape[-2:], (height, width))
            pooled = pool_weighted(features, weights[None])
            embeddings.append(self.embed_pooled(pooled))
            logits.append(self.logits_of(embeddings[-1], features, vocabulary))
        return ClassPrediction(torch.cat(logits), embeddings=torch.cat(embeddings))


def _soft_masks(masks: Tensor, frame: Frame, size: Sequence[int], padded: Sequence[int]) -> Tensor:
    """Compute mask probabilities on a feature map of stride 32.

    Args:
        masks: logits that cover the padded image of the frame, (Q, h, w).
        frame: the image's size for the masks.
        size: height and width of the image for CLIP.
        padded: the same with padding at bottom and right.

    Returns:
        (Q, padded height / 32, padded width / 32) float32.
    """
    padding = (0, padded[1] - size[1], 0, padded[0] - size[0])
    grid = (padded[0] // _STRIDE, padded[1] // _STRIDE)
    resized = []
    for part in masks.split(_MASKS_PER_BATCH):
        probabilities = resize_masks(part.float().sigmoid(), *frame, tuple(size))
        resized.append(_resize(F.pad(probabilities, padding)[None], grid)[0])
    return torch.cat(resized)


def pool_weighted(features: Tensor, weights: Tensor) -> Tensor:
    """Average a feature map with the weights of soft masks.

    Args:
        features: (B, C, h, w).
        weights: in [0, 1], (B, Q, h, w).

    Returns:
        (B, Q, C) float32.
    """
    with full_precision(features):
        weights = weights.flatten(2).float()
        pooled = torch.einsum("bqp,bcp->bqc", weights, features.flatten(2).float())
        return pooled / (weights.sum(-1, keepdim=True) + 1e-6)


def pool_masks(features: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Average a feature map inside masks.

    Args:
        features: (B, C, h, w).
        masks: logits over the same area at any size, (B, Q, H, W). They are resized to (h, w)
            first; positive ones count.

    Returns:
        (B, Q, C) float32, zeros for masks without a positive pixel, and whether they have one,
        (B, Q).
    """
    with full_precision(features):
        inside = (_resize(masks.float(), features.shape[-2:]) > 0).flatten(2).float()
        area = inside.sum(-1, keepdim=True)
        pooled = torch.einsum("bqp,bcp->bqc", inside, features.flatten(2).float())
        # Not `area + 1e-8`: optimizers of graphs drop that sum, and 0 / 0 is not a number.
        return pooled / area.clamp_min(1), area[..., 0] > 0


@MODELS.register_module()
class CropCLIPClassifier(_CLIPClassifier):
    """Runs CLIP on a crop of every mask's box (ablation).

    This is slower than mask tokens and about as accurate.

    Args:
        clip: see :class:`MaskCLIPClassifier`.
        text_encoder: see :class:`MaskCLIPClassifier`.
        template: see :class:`MaskCLIPClassifier`.
        crops_per_batch: number of crops in a batch of CLIP; limits memory.
    """

    def __init__(
        self,
        clip: FrozenCLIP | dict,
        text_encoder: TextEncoder | dict | None = None,
        template: Template = "a photo of a {}.",
        crops_per_batch: int = 25,
    ) -> None:
        super().__init__(clip, text_encoder, template)
        check_whole("crops_per_batch", crops_per_batch)
        self.crops_per_batch = crops_per_batch

    def embed_masks(self, masks: Tensor, images: Sequence[Tensor], stride: int = 4) -> Tensor:
        """Embed a crop of the image for every mask; see the base class for shapes."""
        size = self.clip.image_size
        embedded = []
        for mask, image in zip(masks, images, strict=True):
            crops = [
                _resize(image[None, :, top:bottom, left:right].float(), (size, size))
                for top, bottom, left, right in _boxes(mask > 0, image.shape[-2:], stride)
            ]
            batches = torch.cat(crops).split(self.crops_per_batch)
            embedded.append(torch.cat([self.clip.encode_image(batch) for batch in batches]))
        return torch.stack(embedded)


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def _boxes(
    masks: Tensor, image_size: Sequence[int], stride: int
) -> list[tuple[int, int, int, int]]:
    """Boxes (top, bottom, left, right) in pixels of masks (Q, h, w).

    The box of an empty mask is the whole image.
    """
    height, width = image_size
    if masks.is_meta:  # values are unknown, but all crops are resized to the same size anyway
        return [(0, height, 0, width)] * len(masks)
    boxes = []
    for rows, columns in zip(masks.any(2).cpu(), masks.any(1).cpu(), strict=True):
        ys, xs = rows.nonzero().flatten(), columns.nonzero().flatten()
        top, left = (int(ys[0]) * stride, int(xs[0]) * stride) if len(ys) else (0, 0)
        if not len(ys) or top >= height or left >= width:  # empty, or only in the padding
            boxes.append((0, height, 0, width))
            continue
        bottom = min(int(ys[-1] + 1) * stride, height)
        right = min(int(xs[-1] + 1) * stride, width)
        boxes.append((top, bottom, left, right))
    return boxes
