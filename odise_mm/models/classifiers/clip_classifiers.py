"""CLIP's second prediction on the masks (ODISE, equation 9, and the ablation of mask pooling)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from odise_mm.config.building import build_part
from odise_mm.models.classifiers.base import Classifier, ClassPrediction, class_logits
from odise_mm.models.clip.frozen_clip import FrozenCLIP
from odise_mm.models.clip.prompts import fill_template
from odise_mm.models.clip.text_encoder import TextEncoder
from odise_mm.models.heads.mask2former_head import MaskPrediction
from odise_mm.registry import MODELS
from odise_mm.utils.settings import check_flag, check_whole
from odise_mm.vocabulary import Vocabulary


class _CLIPClassifier(Classifier):
    """Common part: CLIP's mask embeddings against CLIP's text embeddings."""

    def __init__(
        self,
        clip: FrozenCLIP | dict,
        text_encoder: TextEncoder | dict | None = None,
        template: str = "a photo of a {}.",
    ) -> None:
        super().__init__()
        fill_template(template, [])
        self.clip = build_part(clip, MODELS)
        self.text_encoder = build_part(
            text_encoder or {"type": "TextEncoder"}, MODELS, clip=self.clip
        )
        self.template = template

    @torch.no_grad()
    def forward(
        self, prediction: MaskPrediction, images: Sequence[Tensor], vocabulary: Vocabulary
    ) -> ClassPrediction:
        """See :class:`~odise_mm.models.classifiers.base.Classifier`; has no view on void."""
        return self.name_embeddings(self.embed_masks(prediction.masks, images), vocabulary)

    @torch.no_grad()
    def name_embeddings(self, embeddings: Tensor, vocabulary: Vocabulary) -> ClassPrediction:
        """The prediction on masks whose CLIP embeddings are known, (B, Q, C)."""
        text = self.text_encoder.of_vocabulary(vocabulary, self.template)
        return ClassPrediction(class_logits(embeddings, text, vocabulary, self.clip.logit_scale))

    def embed_masks(self, masks: Tensor, images: Sequence[Tensor]) -> Tensor:
        """CLIP embeddings of masked regions.

        Args:
            masks: logits over the padded images, (B, Q, h, w) at stride 4.
            images: B unpadded images, each (3, H, W) in [0, 1].

        Returns:
            (B, Q, C) float32, not normalized.
        """
        raise NotImplementedError


@MODELS.register_module()
class MaskCLIPClassifier(_CLIPClassifier):
    """Pools CLIP's patches inside each mask with one extra class token per mask.

    A mask's token starts as the class token and attends to the class token and to the patches that
    its mask touches; nobody attends to it, so one pass over the image serves all masks
    (MaskCLIP, arXiv 2208.08984; ODISE, equation 9).

    Args:
        clip, text_encoder: the frozen CLIP and the cache before its text tower, or their configs.
        template: the prompt around a name.
        align: the published model resizes the *unpadded* image but the masks of the *padded* one,
            so the two are shifted against each other unless the image's sides are multiples of 64;
            the published numbers contain this. True resizes the masks' image area only.

    Raises:
        ValueError: a CLIP whose image tower is no ViT.
    """

    def __init__(
        self,
        clip: FrozenCLIP | dict,
        text_encoder: TextEncoder | dict | None = None,
        template: str = "a photo of a {}.",
        align: bool = False,
    ) -> None:
        super().__init__(clip, text_encoder, template)
        check_flag("align", align)
        if not hasattr(self.clip.visual, "transformer"):
            raise ValueError(
                f"MaskCLIPClassifier needs a CLIP whose image tower is a ViT, and CLIP "
                f"{self.clip.short_name} has another: take a CropCLIPClassifier"
            )
        self.align = align

    def embed_masks(self, masks: Tensor, images: Sequence[Tensor]) -> Tensor:
        size = self.clip.image_size
        resized = [_resize(image[None].float(), (size, size)) for image in images]
        patches = self._patches_touched(masks, images)
        with self.clip.own_precision():
            return self._mask_tokens(self.clip.normalize(torch.cat(resized)), patches)

    def _patches_touched(self, masks: Tensor, images: Sequence[Tensor]) -> Tensor:
        """Which of CLIP's P patches each mask touches, (B, Q, P) bool."""
        size, patch = self.clip.image_size, self.clip.visual.patch_size[0]
        rows = []
        for mask, image in zip(masks, images, strict=True):
            height, width = size, size
            if self.align:
                height = round(size * mask.shape[-2] * 4 / image.shape[-2])
                width = round(size * mask.shape[-1] * 4 / image.shape[-1])
            resized = _resize(mask[None].float(), (height, width))[..., :size, :size]
            rows.append(F.max_pool2d(resized.sigmoid(), patch))
        return torch.cat(rows).flatten(2) >= 0.5

    def _mask_tokens(self, images: Tensor, patches: Tensor) -> Tensor:
        """(B, Q, C) from normalized images (B, 3, S, S) and the patches of each mask (B, Q, P)."""
        visual = self.clip.visual
        batch, queries, count = patches.shape
        tokens = visual._embeds(images)  # class token first, behind ln_pre
        tokens = torch.cat([tokens, tokens[:, :1].expand(-1, queries, -1)], dim=1)
        visible = patches.new_zeros(batch, tokens.shape[1], tokens.shape[1])
        visible[:, :, : 1 + count] = True
        visible[:, 1 + count :, 1 : 1 + count] = patches
        hidden = torch.zeros_like(visible, dtype=tokens.dtype).masked_fill_(~visible, float("-inf"))
        heads = visual.transformer.resblocks[0].attn.num_heads
        tokens = visual.transformer(tokens, attn_mask=hidden.repeat_interleave(heads, dim=0))
        return (visual.ln_post(tokens[:, 1 + count :]) @ visual.proj).float()


@MODELS.register_module()
class CropCLIPClassifier(_CLIPClassifier):
    """Runs CLIP on a crop of every mask's box: slower than mask tokens, about as good (ablation).

    Args:
        clip, text_encoder, template: as in :class:`MaskCLIPClassifier`.
        crops_per_batch: crops that CLIP sees at once; bounds memory.
    """

    def __init__(
        self,
        clip: FrozenCLIP | dict,
        text_encoder: TextEncoder | dict | None = None,
        template: str = "a photo of a {}.",
        crops_per_batch: int = 25,
    ) -> None:
        super().__init__(clip, text_encoder, template)
        check_whole("crops_per_batch", crops_per_batch)
        self.crops_per_batch = crops_per_batch

    def embed_masks(self, masks: Tensor, images: Sequence[Tensor]) -> Tensor:
        size = self.clip.image_size
        embedded = []
        for mask, image in zip(masks, images, strict=True):
            crops = [
                _resize(image[None, :, top:bottom, left:right].float(), (size, size))
                for top, bottom, left, right in _boxes(mask > 0, image.shape[-2:])
            ]
            batches = torch.cat(crops).split(self.crops_per_batch)
            embedded.append(torch.cat([self.clip.encode_image(batch) for batch in batches]))
        return torch.stack(embedded)


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def _boxes(masks: Tensor, image_size: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """(top, bottom, left, right) in pixels of masks (Q, h, w) at stride 4; of an empty one: all."""
    height, width = image_size
    if masks.is_meta:  # no values there; every crop is resized to one size anyway
        return [(0, height, 0, width)] * len(masks)
    boxes = []
    for rows, columns in zip(masks.any(2).cpu(), masks.any(1).cpu(), strict=True):
        ys, xs = rows.nonzero().flatten(), columns.nonzero().flatten()
        top, left = (int(ys[0]) * 4, int(xs[0]) * 4) if len(ys) else (0, 0)
        if not len(ys) or top >= height or left >= width:  # empty, or in the padding only
            boxes.append((0, height, 0, width))
            continue
        bottom, right = min(int(ys[-1] + 1) * 4, height), min(int(xs[-1] + 1) * 4, width)
        boxes.append((top, bottom, left, right))
    return boxes
