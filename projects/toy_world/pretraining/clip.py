"""Small CLIP for the toy world: open_clip's model and a contrastive loss with several positives.

Each scene contributes the whole image with a caption, and masked regions with a name, as tokens of
the whole image. Some scenes also contribute regions with a name as images (cropped, or gray outside
the region), which take more time. The mask tokens are the same as in
:class:`~odise_mm.models.MaskCLIPClassifier`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from odise_mm.models import FrozenCLIP, MaskCLIPClassifier
from odise_mm.models.classifiers.base import class_logits
from odise_mm.models.clip.prompts import fill_template
from odise_mm.models.clip.sources import CONFIG_FILE, WEIGHTS_FILE
from odise_mm.models.clip.word_tokenizer import WORDS_FILE
from odise_mm.utils.files import replacing
from projects.toy_world import captions
from projects.toy_world.names import NAMES, THINGS, Name, vocabulary
from projects.toy_world.pretraining.loop import write_json
from projects.toy_world.pretraining.regions import MODES, show_region
from projects.toy_world.pretraining.text import CONTEXT_LENGTH, TEMPLATES, WORDS, tokenizer
from projects.toy_world.world import Scene, scene

MODEL: dict[str, Any] = dict(
    embed_dim=128,
    vision_cfg=dict(image_size=64, layers=6, width=128, head_width=32, patch_size=8),
    text_cfg=dict(
        context_length=CONTEXT_LENGTH, vocab_size=len(WORDS) + 3, width=96, heads=4, layers=2
    ),
)
MEAN, STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD

_ITEM_SEED_OFFSET = 2 * 10**9  # so that items and scenes have different random numbers
_HELD_OUT = 10**6  # seed of the scenes for evaluation, split "val"


# --- data ---------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """Data of a step: B scenes with m masked regions each, and R regions as images.

    Attributes:
        wholes: (B, 3, S, S) uint8, whole images.
        regions: (R, 3, S, S) uint8, regions as separate images.
        patches: (B, m, P) bool, the patches of the whole images that masked regions touch.
        texts: Texts of wholes, regions and masked regions, in this order.
        groups: (B + R + B m,) int64, equal for texts with the same meaning.
    """

    wholes: Tensor
    regions: Tensor
    patches: Tensor
    texts: list[str]
    groups: Tensor


class Web(Dataset):
    """Dataset of scenes with texts for training CLIP; item n is the same in every run.

    Args:
        length: Number of scenes.
        seed: Seed of the scenes.
        size: Height and width of the images, in pixels.
        patch: Edge length of CLIP's patches, in pixels.
        regions: Number of regions of a scene that are shown as images.
        every: Only one of this number of scenes, the first, shows regions as images.
        masked: Number of masked regions per scene.
    """

    def __init__(
        self, length: int, seed: int, size: int, patch: int, regions: int, every: int, masked: int
    ) -> None:
        self.length, self.seed, self.size, self.patch = length, seed, size, patch
        self.regions, self.every, self.masked = regions, every, masked

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        made = scene((self.seed, index))
        rng = np.random.default_rng([_ITEM_SEED_OFFSET, self.seed, index])
        caption = made.captions[rng.integers(len(made.captions))]
        regions, patches, names = [], [], []
        shown = 0 if index % self.every else self.regions
        for masked, count in ((False, shown), (True, self.masked)):
            for segment in _some(made, count, rng):
                mask = made.panoptic == segment.id
                if masked:
                    patches.append(touched(torch.from_numpy(mask), self.size, self.patch))
                else:
                    mode = MODES[rng.integers(len(MODES))]
                    regions.append(show_region(made.image, mask, mode, self.size, rng))
                names.append(segment.name)
        synonyms = [name.synonyms[rng.integers(len(name.synonyms))] for name in names]
        texts = [TEMPLATES[rng.integers(len(TEMPLATES))].format(text) for text in synonyms]
        whole = np.ones(made.panoptic.shape, bool)
        return (
            _tensor([show_region(made.image, whole, "masked", self.size, rng)]),
            regions,
            torch.stack(patches),
            (caption, *texts),
            [name.category for name in names],
        )


def _some(made: Scene, count: int, rng: np.random.Generator) -> list[Any]:
    """Choose random segments; none is repeated before all have been chosen."""
    number = len(made.segments)
    order = [i for _ in range(-(-count // number)) for i in rng.permutation(number)]
    return [made.segments[i] for i in order[:count]]


def touched(mask: Tensor, size: int, patch: int) -> Tensor:
    """Return the patches that a mask touches.

    Args:
        mask: (H, W) bool.
        size: Height and width of the resized image, in pixels.
        patch: Edge length of the patches, in pixels.

    Returns:
        (P,) bool.
    """
    # the same three steps as in MaskCLIPClassifier: stride 4, CLIP's image size, patches
    logits = mask_logits(mask)[None, None]
    resized = F.interpolate(logits, (size, size), mode="bilinear", align_corners=False)
    return F.max_pool2d(resized, patch).flatten() >= 0


def mask_logits(mask: Tensor) -> Tensor:
    """Convert an (H, W) bool mask to (H / 4, W / 4) float32 logits, as a head predicts them."""
    return 20 * (F.avg_pool2d(mask[None, None].float(), 4)[0, 0] - 0.5)


def collate(items: Sequence[tuple[Any, ...]]) -> Batch:
    """Collate items of :class:`Web` to a batch."""
    wholes, regions, patches, texts, labels = zip(*items, strict=True)
    shown = [len(images) for images in regions]
    order = [text[0] for text in texts]
    groups: list[Any] = [captions.split_words(text) for text in order]
    for part in (lambda values, k: values[:k], lambda values, k: values[k:]):
        order += [t for text, k in zip(texts, shown, strict=True) for t in part(text[1:], k)]
        groups += [g for label, k in zip(labels, shown, strict=True) for g in part(label, k)]
    return Batch(
        torch.cat(wholes),
        _tensor([image for images in regions for image in images]),
        torch.stack(patches),
        order,
        number([str(key) for key in groups]),
    )


def number(keys: Sequence[str]) -> Tensor:
    """Number keys: (n,) int64, equal for equal keys."""
    found = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return torch.tensor([found[key] for key in keys])


def _tensor(images: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


# --- training -----------------------------------------------------------------------------------


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, groups: Tensor) -> Tensor:
    """Compute CLIP's loss with several correct texts per image.

    Names repeat within a batch, so all texts of an image's group are correct. The target of an
    image is uniform over these texts, and the target of a text over all images of its group.

    Args:
        images: (N, C) image embeddings, L2-normalized.
        texts: (N, C) text embeddings, L2-normalized.
        scale: Factor for the cosine similarities.
        groups: (N,) int64, equal for pairs with the same meaning.

    Returns:
        Mean of the cross entropies of both directions, minus its smallest possible value.
    """
    logits = scale * images.float() @ texts.float().T
    same = (groups[:, None] == groups[None]).float()
    target = same / same.sum(1, keepdim=True)  # symmetric: groups are blocks
    entropy = same.sum(1).log().mean()
    both = F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
    return both / 2 - entropy


def with_mask_tokens(visual: nn.Module, images: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
    """Embed images and masked regions of them in one pass.

    Args:
        visual: open_clip's vision transformer.
        images: (B, 3, S, S), normalized.
        patches: (B, k, P) bool, the patches that each region's token attends to, in addition to the
            class token.

    Returns:
        (B, C) and (B, k, C) embeddings, not L2-normalized.
    """
    batch, regions, count = patches.shape
    tokens = visual._embeds(images)
    tokens = torch.cat([tokens, tokens[:, :1].expand(-1, regions, -1)], dim=1)
    visible = patches.new_zeros(batch, tokens.shape[1], tokens.shape[1])
    visible[:, :, : 1 + count] = True
    visible[:, 1 + count :, 1 : 1 + count] = patches
    hidden = torch.zeros_like(visible, dtype=tokens.dtype).masked_fill_(~visible, float("-inf"))
    heads = visual.transformer.resblocks[0].attn.num_heads
    tokens = visual.transformer(tokens, attn_mask=hidden.repeat_interleave(heads, dim=0))
    pooled = visual.ln_post(torch.cat([tokens[:, :1], tokens[:, 1 + count :]], dim=1))
    pooled = pooled @ visual.proj
    return pooled[:, 0], pooled[:, 1:]


class Step:
    """Loss function of a batch.

    Args:
        model: open_clip's model.
        mask_tokens: Whether masked regions are learned as tokens of the whole image.
    """

    def __init__(self, model: nn.Module, mask_tokens: bool) -> None:
        self.model, self.mask_tokens = model, mask_tokens
        self.tokenizer = tokenizer()

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        model = self.model
        device = model.logit_scale.device
        wholes = normalize(batch.wholes.to(device))
        if self.mask_tokens:
            whole, masked = with_mask_tokens(model.visual, wholes, batch.patches.to(device))
            extra = [masked.flatten(0, 1)]
        else:
            whole, extra = model.encode_image(wholes), []
        regions = model.encode_image(normalize(batch.regions.to(device)))
        images = F.normalize(torch.cat([whole, regions, *extra]).float(), dim=-1)
        texts, groups = batch.texts[: len(images)], batch.groups[: len(images)]
        different = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        embedded = model.encode_text(self.tokenizer(list(different)).to(device))
        places = torch.tensor([different[text] for text in texts], device=device)
        embedded = F.normalize(embedded.float(), dim=-1)[places]
        scale = model.logit_scale.exp().clamp(max=100)
        return {"loss": contrastive_loss(images, embedded, scale, groups.to(device))}


def normalize(images: Tensor) -> Tensor:
    """Normalize uint8 images with CLIP's mean and standard deviation, to float32."""
    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (MEAN, STD))
    return (images.float() / 255 - mean) / std


# --- evaluation ---------------------------------------------------------------------------------


class Evaluation:
    """Zero-shot accuracy on held-out scenes.

    Args:
        scenes: Number of scenes.
        device: Device of the computation.
    """

    def __init__(self, scenes: int, device: torch.device) -> None:
        self.clip = FrozenCLIP(MODEL, words=WORDS).to(device)
        self.device = device
        self.classifier = MaskCLIPClassifier(self.clip)
        size = self.clip.image_size
        self.images, self.masks, self.names = [], [], []
        crops: list[np.ndarray] = []
        for index in range(scenes):
            made = scene((_HELD_OUT, index), "val")
            rng = np.random.default_rng([_ITEM_SEED_OFFSET, _HELD_OUT, index])
            masks = [made.panoptic == segment.id for segment in made.segments]
            crops += [show_region(made.image, mask, "crop", size, rng) for mask in masks]
            self.images.append(torch.from_numpy(made.image).permute(2, 0, 1) / 255)
            self.masks.append(torch.stack([mask_logits(torch.from_numpy(m)) for m in masks]))
            self.names += [segment.name for segment in made.segments]
        self.crops = _tensor(crops).float() / 255

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Compute accuracies from 0 to 1.

        ``crop_*``: crops of things, over all names of things. ``mask_*``: mask tokens of true masks
        of base things, novel things and stuff, over all names.
        """
        self.clip.model.load_state_dict(model.state_dict())
        self.classifier.text_encoder.forget()
        crops = [self.clip.encode_image(part.to(self.device)) for part in self.crops.split(256)]
        masks = [
            self.classifier.embed_masks(mask[None].to(self.device), [image.to(self.device)])[0]
            for mask, image in zip(self.masks, self.images, strict=True)
        ]
        found = self._choose(torch.cat(crops), len(THINGS))
        things = [i for i, name in enumerate(self.names) if name.is_thing]
        pairs = [(self.names[i], NAMES[found[i]]) for i in things]
        result = {
            "crop": _share(pairs, "category"),
            "crop_base": _share([p for p in pairs if not p[0].is_novel], "category"),
            "crop_novel": _share([p for p in pairs if p[0].is_novel], "category"),
        }
        for part in ("color", "shape", "pattern"):
            result[f"crop_{part}"] = _share(pairs, part)
        found = self._choose(torch.cat(masks), len(NAMES))
        pairs = [(name, NAMES[i]) for name, i in zip(self.names, found, strict=True)]
        for part, chosen in (
            ("base", [p for p in pairs if p[0].is_thing and not p[0].is_novel]),
            ("novel", [p for p in pairs if p[0].is_novel]),
            ("stuff", [p for p in pairs if not p[0].is_thing]),
        ):
            result[f"mask_{part}"] = _share(chosen, "category")
        for part in ("color", "shape"):
            result[f"mask_{part}"] = _share([p for p in pairs if p[0].is_thing], part)
        return result

    def _choose(self, embeddings: Tensor, count: int) -> list[int]:
        """Return the indices in ``NAMES`` of the most similar names among the first ``count``."""
        names = vocabulary("all")
        text = self.classifier.text_encoder(fill_template(TEMPLATES[-1], names.flat[0]))
        logits = class_logits(embeddings[None], text, names, 1.0)[0, :, :count]
        return logits.argmax(-1).tolist()


def _share(pairs: Sequence[tuple[Name, Name]], part: str) -> float:
    """Return the fraction of pairs that agree in an attribute; 0 without pairs."""
    agree = [getattr(name, part) == getattr(found, part) for name, found in pairs]
    return sum(agree) / max(1, len(agree))


def export(model: nn.Module, folder: Path) -> None:
    """Write a model in open_clip's layout, float16, for ``FrozenCLIP(folder, folder)``."""
    folder.mkdir(parents=True, exist_ok=True)
    config = dict(model_cfg=MODEL, preprocess_cfg=dict(mean=MEAN, std=STD))
    write_json(folder / CONFIG_FILE, json.loads(json.dumps(config)))
    tokenizer().save(folder / WORDS_FILE)
    state = {key: value.half().contiguous().cpu() for key, value in model.state_dict().items()}
    with replacing(folder / WEIGHTS_FILE) as temporary:
        save_file(state, temporary)
