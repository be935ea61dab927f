"""Tests of the CLIP classifiers against a slow transformer in numpy and explicit crops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from odise_mm.models import (
    CropCLIPClassifier,
    FrozenCLIP,
    MaskCLIPClassifier,
    MaskPrediction,
)
from odise_mm.vocabulary import Vocabulary
from tests.support.parts import TINY_CLIP, clip, relative_error

VOCABULARY = Vocabulary((("cat", "kitten"), ("brick wall",), ("dog",)), (True, False, True))


def smooth_image(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 16 + 2, width // 16 + 2, generator=generator)
    return F.interpolate(coarse, (height, width), mode="bilinear")[0]


def random_masks(height: int, width: int, count: int = 5) -> Tensor:
    """Draw mask logits of a padded image at stride 4: (1, count, height / 4, width / 4)."""
    generator = torch.Generator().manual_seed(9)
    coarse = torch.randn(1, count, 4, 4, generator=generator) - 0.5
    return 5 * F.interpolate(coarse, (height // 4, width // 4), mode="bicubic")


# ------------------------------------------------------------------- the slow transformer


class SlowTower:
    """CLIP's image tower in numpy, one token and one head at a time."""

    def __init__(self) -> None:
        visual = clip().visual
        self.w = {k: v.detach().double().numpy() for k, v in visual.state_dict().items()}
        self.layers = len(visual.transformer.resblocks)
        self.heads = visual.transformer.resblocks[0].attn.num_heads

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def patches(self, pixels: np.ndarray) -> np.ndarray:
        """Map a normalized image (3, 56, 56) to tokens (1 + 16, width), class token first."""
        kernel, size = self.w["conv1.weight"], 14
        tokens = [self.w["class_embedding"]]
        for y in range(0, pixels.shape[1], size):
            for x in range(0, pixels.shape[2], size):
                patch = pixels[:, y : y + size, x : x + size]
                tokens.append((kernel * patch).sum((1, 2, 3)))
        return self.norm(np.stack(tokens) + self.w["positional_embedding"], "ln_pre")

    def attend(self, x: np.ndarray, visible: np.ndarray, block: str) -> np.ndarray:
        weight, bias = self.w[f"{block}.attn.in_proj_weight"], self.w[f"{block}.attn.in_proj_bias"]
        q, k, v = np.split(x @ weight.T + bias, 3, axis=1)
        out, width = np.zeros_like(q), q.shape[1] // self.heads
        for head in range(self.heads):
            part = slice(head * width, (head + 1) * width)
            for token in range(len(x)):
                seen = np.flatnonzero(visible[token])
                scores = k[seen, part] @ q[token, part] / np.sqrt(width)
                weights = np.exp(scores - scores.max())
                out[token, part] = weights / weights.sum() @ v[seen, part]
        return (
            out @ self.w[f"{block}.attn.out_proj.weight"].T + self.w[f"{block}.attn.out_proj.bias"]
        )

    def embed(self, pixels: np.ndarray, touched: np.ndarray) -> np.ndarray:
        """Embed a mask that touches the given patches of 16."""
        tokens = self.patches(pixels)
        x = np.concatenate([tokens, tokens[:1]])
        count = len(tokens)
        visible = np.zeros((count + 1, count + 1), bool)
        visible[:, :count] = True
        visible[count, 1:count] = touched
        for layer in range(self.layers):
            block = f"transformer.resblocks.{layer}"
            x = x + self.attend(self.norm(x, f"{block}.ln_1"), visible, block)
            hidden = self.norm(x, f"{block}.ln_2")
            hidden = (
                hidden @ self.w[f"{block}.mlp.c_fc.weight"].T + self.w[f"{block}.mlp.c_fc.bias"]
            )
            hidden = hidden / (1 + np.exp(-1.702 * hidden))
            x = x + hidden @ self.w[f"{block}.mlp.c_proj.weight"].T
            x = x + self.w[f"{block}.mlp.c_proj.bias"]
        return self.norm(x[-1], "ln_post") @ self.w["proj"]


def pixels(image: Tensor) -> np.ndarray:
    resized = F.interpolate(image[None], (56, 56), mode="bilinear")
    return clip().normalize(resized)[0].double().numpy()


def touched(mask: Tensor) -> np.ndarray:
    """Return which of the 16 patches contain a probability of at least 0.5."""
    resized = F.interpolate(mask[None, None], (56, 56), mode="bilinear")[0, 0]
    return np.array(
        [
            (resized[y : y + 14, x : x + 14].sigmoid() >= 0.5).any().item()
            for y in range(0, 56, 14)
            for x in range(0, 56, 14)
        ]
    )


@pytest.mark.parametrize(("size", "padded"), [((128, 128), (128, 128)), ((100, 150), (128, 192))])
def test_mask_tokens_equal_the_slow_tower(size: tuple[int, int], padded: tuple[int, int]) -> None:
    image, masks = smooth_image(*size), random_masks(*padded)
    masks[0, 4] = -9  # touches no patch, and attends only to the class token
    classifier = MaskCLIPClassifier(clip())
    embeddings = classifier.embed_masks(masks, [image])[0].double()
    tower, inputs = SlowTower(), pixels(image)
    patches = [touched(mask) for mask in masks[0]]
    assert not patches[4].any() and len({p.sum() for p in patches}) > 2
    wanted = np.stack([tower.embed(inputs, p) for p in patches])
    assert relative_error(embeddings, torch.from_numpy(wanted)) < 1e-5


def test_full_mask_equals_the_image_embedding() -> None:
    image = smooth_image(128, 192)
    embeddings = MaskCLIPClassifier(clip()).embed_masks(torch.ones(1, 2, 32, 48), [image])
    whole = clip().encode_image(F.interpolate(image[None], (56, 56), mode="bilinear"))
    assert relative_error(embeddings[0], whole.expand(2, -1)) < 1e-5


def test_masks_and_images_are_independent() -> None:
    classifier = MaskCLIPClassifier(clip())
    masks = torch.cat([random_masks(128, 128), -random_masks(128, 128)])
    images = [smooth_image(128, 128), smooth_image(100, 90, seed=1)]
    together = classifier.embed_masks(masks, images)
    for i in range(2):
        alone = classifier.embed_masks(masks[i : i + 1, 2:3], images[i : i + 1])
        assert relative_error(together[i, 2:3], alone[0]) < 1e-5


def test_align_changes_nothing_for_multiples_of_64() -> None:
    masks, image = random_masks(128, 192), smooth_image(128, 192)
    plain, aligned = (MaskCLIPClassifier(clip(), align=align) for align in (False, True))
    assert torch.equal(plain.embed_masks(masks, [image]), aligned.embed_masks(masks, [image]))


def test_align_crops_masks_to_the_image() -> None:
    # 96 of the 128 rows are image. The mask covers its lower third.
    image, masks = smooth_image(96, 128), torch.full((1, 1, 32, 32), -9.0)
    masks[0, 0, 16:24] = 9
    tower, inputs = SlowTower(), pixels(image)
    # There are 4 rows of patches. In the padded image, the mask covers exactly the third row.
    for align, rows in ((True, (2, 3)), (False, (2,))):
        patches = np.zeros((4, 4), bool)
        patches[list(rows)] = True
        wanted = torch.from_numpy(tower.embed(inputs, patches.ravel()))
        embedding = MaskCLIPClassifier(clip(), align=align).embed_masks(masks, [image])[0, 0]
        assert relative_error(embedding.double(), wanted) < 1e-5, align


def test_logits_are_scaled_cosines_with_prompts() -> None:
    masks, image = random_masks(128, 128), smooth_image(128, 128)
    classifier = MaskCLIPClassifier(clip(), template="this is {}, a {}")
    class_prediction = classifier(MaskPrediction(masks, torch.zeros(1)), [image], VOCABULARY)
    assert class_prediction.p_void is None
    embeddings = classifier.embed_masks(masks, [image])[0].numpy()
    text = clip().encode_text([f"this is {n}, a {n}" for n in VOCABULARY.flat[0]]).numpy()
    for query, embedding in enumerate(embeddings):
        cosines = text @ embedding / np.linalg.norm(text, axis=1) / np.linalg.norm(embedding)
        wanted = np.array([max(cosines[:2]), cosines[2], cosines[3]]) * float(clip().logit_scale)
        np.testing.assert_allclose(class_prediction.logits[0, query].numpy(), wanted, atol=1e-4)


@pytest.mark.parametrize("kind", [MaskCLIPClassifier, CropCLIPClassifier])
def test_template_without_placeholder_raises(kind: type) -> None:
    with pytest.raises(ValueError, match="the prompt template 'a photo' must contain {}"):
        kind(clip(), template="a photo")


def test_mask_tokens_without_vit_raise() -> None:
    resnet = dict(layers=(1, 1, 1, 1), width=32, image_size=64)
    other = FrozenCLIP(dict(TINY_CLIP, vision_cfg=resnet))
    with pytest.raises(ValueError, match="needs a CLIP whose image tower is a ViT.*CropCLIP"):
        MaskCLIPClassifier(other)
    CropCLIPClassifier(other)


def test_no_trained_parameters() -> None:
    classifier = MaskCLIPClassifier(clip())
    assert classifier.state_dict() == {}
    assert not any(p.requires_grad for p in classifier.parameters())


# ----------------------------------------------------------------------------------- crops


@pytest.mark.parametrize("crops_per_batch", [1, 2, 25])
def test_crops_equal_explicit_crops(crops_per_batch: int) -> None:
    image = smooth_image(100, 150)
    masks = torch.full((1, 5, 32, 48), -1.0)  # of the padded image, 128 x 192
    masks[0, 0, 2:10, 5:20] = 1
    masks[0, 1, 3, 7] = 1  # one cell
    masks[0, 2, 20:32, 30:48] = 1  # extends into the padding, which is cut off
    masks[0, 3, 28:32, 2:4] = 1  # only in the padding: the whole image, as for an empty mask
    boxes = [(8, 40, 20, 80), (12, 16, 28, 32), (80, 100, 120, 150), (0, 100, 0, 150)]
    boxes.append((0, 100, 0, 150))
    wanted = [
        clip().encode_image(
            F.interpolate(image[None, :, top:bottom, left:right], (56, 56), mode="bilinear")
        )
        for top, bottom, left, right in boxes
    ]
    classifier = CropCLIPClassifier(clip(), crops_per_batch=crops_per_batch)
    embeddings = classifier.embed_masks(masks, [image])
    assert relative_error(embeddings[0], torch.cat(wanted)) < 1e-5


def test_crops_of_two_images_are_independent() -> None:
    masks = torch.cat([random_masks(128, 128), -random_masks(128, 128)])
    images = [smooth_image(128, 128), smooth_image(100, 90, seed=1)]
    classifier = CropCLIPClassifier(clip())
    together = classifier.embed_masks(masks, images)
    for i in range(2):
        alone = classifier.embed_masks(masks[i : i + 1], images[i : i + 1])
        assert relative_error(together[i : i + 1], alone) < 1e-5
