"""Recorded numbers of FC-CLIP, OVRCOAT and MAFT+, and the random weights they were made with.

Like :mod:`tests.support.golden`, for the methods that build on a convolutional CLIP. The complete
recordings are not needed: ``tests/data`` holds thinned-out ones, which
``python -m tests.support.golden_families FOLDER...`` has made from them.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from timm.models import register_model
from timm.models.convnext import _create_convnext
from torch import nn

from tests.support.golden import DATA, draw_parameter

ROOT = Path(__file__).parents[2]
TRUNK = "tiny_convnext_of_clip"


@register_model
def tiny_convnext_of_clip(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-L's blocks, narrower and fewer."""
    sizes = dict(dims=(32, 64, 128, 256), depths=(2, 2, 3, 2))
    return _create_convnext("convnext_large", pretrained=pretrained, **{**sizes, **kwargs})


CLIP: dict[str, Any] = dict(
    embed_dim=64,
    vision_cfg=dict(
        image_size=256,
        timm_model_name=TRUNK,
        timm_model_pretrained=False,
        timm_pool="",
        timm_proj="mlp",
        timm_drop=0.0,
        timm_drop_path=0.0,
    ),
    text_cfg=dict(context_length=77, vocab_size=49408, width=64, heads=2, layers=2),
)
"""open_clip's config of the tiny CLIP."""

_HEAD = r"^sem_seg_head\.predictor\."
_TEXT = r"clip_model\.transformer\.resblocks\.\d+\."
# First pattern found in the key wins, as in tests.support.golden.
_EXCEPTIONS: tuple[tuple[str, str, float], ...] = (
    (r"^cdt\.cross_atten\.multihead_attn\.in_proj_weight$", "rule", 4.0),
    (r"^cdt\.cross_atten\.norm\.(weight|bias)$", "rule", 0.2),
    (r"clip_model\.logit_scale$", "value", 4.6052),
    (_HEAD + r"logit_scale$", "value", 4.0),
    (_HEAD + r"query_(feat|embed)\.weight$", "normal", 1.0),
    (
        _HEAD + r"transformer_(self|cross)_attention_layers\.\d+\."
        r"(self_attn|multihead_attn)\.out_proj\.(weight|bias)$",
        "rule",
        0.2,
    ),
    (_HEAD + r"transformer_ffn_layers\.\d+\.linear2\.(weight|bias)$", "rule", 0.2),
    (_HEAD + r"_mask_pooling_proj\.1\.weight$", "rule", 0.5),
    (r"pixel_decoder\.mask_features\.bias$", "rule", 4.0),
    (r"clip_model\.token_embedding\.weight$", "rule", 8.0),
    (_TEXT + r"attn\.(in_proj_weight|out_proj\.weight)$", "rule", 2.0),
    (_TEXT + r"mlp\.c_proj\.weight$", "rule", 0.5),
)
_SALTED = (
    "sem_seg_head.predictor.class_embed.layers.2.weight",
    "void_embedding.weight",
    "backbone.clip_model.visual.head.mlp.fc2.weight",
)
_SALTS = {
    "fcclip": ("#34", "#9", "#183"),
    "ovrcoat": ("#292", "#353", "#115"),
    "maftplus": ("#228", "#186", "#47"),
}
FAMILIES = tuple(_SALTS)
_CONFIGS = {
    "fcclip": "fcclip/fcclip_coco.py",
    "ovrcoat": "ovrcoat/ovrcoat_convnext_l.py",
    "maftplus": "maftplus/maftplus_convnext_l.py",
}


def published_config(family: str, training: bool = False) -> Config:
    """The config of the full-size model, for testing or training."""
    file = f"{family}/{family}_coco.py" if training else _CONFIGS[family]
    return Config.fromfile(ROOT / "configs" / file)


def tiny_config(family: str, training: bool = False) -> Config:
    """The same with the tiny CLIP, whose weights are random."""
    config = published_config(family, training)
    for loss in config.model.get("auxiliary_losses", ()):
        if "teacher" in loss:
            loss.teacher = dict(type="OpenCLIPBackbone", model=CLIP)
    config.model.clip.model = CLIP
    config.model.clip.weights = None
    config.model.head.embed_dim = CLIP["embed_dim"]
    return config


def parameter(family: str, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the random float32 value of a parameter of the tiny model, from its published key."""
    salt = dict(zip(_SALTED, _SALTS[family], strict=True)).get(key, "")
    return draw_parameter(key, shape, _EXCEPTIONS, salt)


@lru_cache(maxsize=1)
def key_lists() -> dict[str, dict[str, list[int]]]:
    """``{family}/{tiny,full}``: the keys of a published checkpoint with their shapes."""
    return json.loads(gzip.decompress((DATA / "families_keys.json.gz").read_bytes()))


def shapes(family: str, size: str = "tiny") -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the parameters of a published checkpoint."""
    return {key: tuple(shape) for key, shape in key_lists()[f"{family}/{size}"].items()}


def write_checkpoint(path: Path, family: str) -> Path:
    """Write the tiny model's checkpoint as it is published, with the training loss's buffer."""
    state = {
        key: torch.from_numpy(parameter(family, key, shape))
        for key, shape in shapes(family).items()
    }
    empty_weight = torch.ones(134)
    empty_weight[-1] = 0.1
    torch.save({"model": {**state, "criterion.empty_weight": empty_weight}}, path)
    return path


# Recorded arrays that are kept, with strides on top of those of the recording.
_KEPT: dict[str, tuple[int, ...]] = {
    **{f"backbone_res{level}_n16": (1, 5, 1, 1) for level in range(2, 6)},
    **{f"multi_scale_{level}_n16": (1, 5, 1, 1) for level in range(3)},
    "mask_features_n32": (1, 5, 2, 2),
    "pred_masks_q0_19": (1, 2, 2),
    "aux4_pred_masks_s8": (1, 2, 2),
    "aux0_pred_logits": (),
    "aux4_pred_logits": (),
    "class_embed_in": (1, 1, 3),
    "class_embed": (),
    "pooled_clip_feature": (1, 1, 5),
    "clip_mask_embed": (),
    "text_classifier": (),
    "cdt_text": (),
    "pred_logits_in_vocab": (),
    "out_vocab_logits": (),
    "semcfg_out_vocab_logits": (),
    "semcfg_cdt_text": (),
    "semcfg_mask_cls_results": (),
    "semcfg_sem_seg_argmax": (),
    "void_prob_adjusted": (),
    "mask_cls_results": (),
    "mask_cls_results_gate": (),
    "mask_cls_results_trust0": (),
    "panoptic_seg": (),
    "panoptic_seg_ot03": (),
    "trust0_panoptic_seg": (),
    "segments_info": (),
    "segments_info_ot03": (),
    "sem_seg_argmax": (),
    "inst_all_scores": (),
}


# The same for the recorded losses; gradients, too.
_KEPT_LOSSES: dict[str, tuple[int, ...]] = {
    "frozen_clip_vis_dense": (1, 5, 1, 1),
    "teacher_clip_vis_dense": (1, 5, 1, 1),
    **{
        f"grad_{loss}/backbone.clip_model.visual.trunk.{key}": steps
        for loss in ("oov_ce", "dist_plus_rc")
        for key, steps in {
            "stem.0.weight": (1, 1, 1, 1),
            "stages.2.blocks.1.mlp.fc1.weight": (3, 3),
            "stages.3.blocks.1.mlp.fc2.weight": (7, 5),
        }.items()
    },
}


@dataclass
class Case:
    """Recorded stages of one image of 512 x 512 pixels.

    Attributes:
        family: one of :data:`FAMILIES`.
        arrays: recorded arrays by name.
    """

    family: str
    arrays: dict[str, np.ndarray] = field(repr=False)

    def __getitem__(self, stage: str) -> np.ndarray:
        return self.arrays[stage]

    def segments(self, stage: str = "segments_info") -> list[dict[str, Any]]:
        """Recorded segments: ``id``, ``isthing``, ``category_id``."""
        return json.loads(str(self.arrays[stage]))

    def sample(self, stage: str, tensor: torch.Tensor) -> np.ndarray:
        """Thin a tensor out as the recording was: by the one stride per axis that fits."""
        want, found = self.arrays[stage], tensor.detach().cpu().numpy()
        while found.ndim > want.ndim and found.shape[0] == 1:
            found = found[0]
        while found.ndim < want.ndim:
            found = found[None]
        for axis, (size, wanted) in enumerate(zip(found.shape, want.shape, strict=True)):
            step = next(s for s in range(1, size + 1) if -(-size // s) == wanted)
            found = found[(slice(None),) * axis + (slice(None, None, step),)]
        return found

    def error(self, stage: str, tensor: torch.Tensor) -> float:
        """Largest difference / standard deviation of the recording."""
        want = self.arrays[stage].astype(np.float64)
        return float(np.abs(self.sample(stage, tensor) - want).max() / want.std())

    def agreement(self, stage: str, tensor: torch.Tensor) -> float:
        """Share of equal entries of a label map."""
        return float((self.sample(stage, tensor) == self.arrays[stage]).mean())


def load_case(family: str) -> Case:
    """Load a recorded case from ``tests/data``."""
    with np.load(DATA / f"{family}_tiny_512x512.npz") as data:
        return Case(family, {key: data[key] for key in data.files})


def load_losses(family: str) -> Case:
    """Load the recorded losses of OVRCOAT or MAFT+ from ``tests/data``."""
    with np.load(DATA / f"{family}_tiny_losses_512x512.npz") as data:
        return Case(family, {key: data[key] for key in data.files})


def check_values(family: str) -> dict[str, np.ndarray]:
    """First eight values of every tenth parameter, as recorded."""
    with np.load(DATA / "families_weights_check.npz") as data:
        prefix = f"{family}/"
        return {k.removeprefix(prefix): data[k] for k in data.files if k.startswith(prefix)}


def pack_losses(folder: Path, family: str) -> None:
    """Thin out the recorded losses of a family that has any."""
    source = folder / f"{family}_tiny_losses_512x512.npz"
    if source.is_file():
        with np.load(source) as data:
            kept = {
                name: data[name][
                    tuple(slice(None, None, step) for step in _KEPT_LOSSES.get(name, ()))
                ]
                for name in data.files
            }
        np.savez_compressed(DATA / source.name, **kept)


def main() -> None:
    """Thin out the complete recordings: one folder for each family, in the order of FAMILIES."""
    keys, checks = {}, {}
    for family, folder in zip(FAMILIES, map(Path, sys.argv[1:]), strict=True):
        lists = json.loads((folder / "keys.json").read_text())
        keys |= {f"{family}/{size}": lists[f"{size}/{family}"] for size in ("tiny", "full")}
        with np.load(folder / f"{family}_tiny_weights_check.npz") as data:
            names = [name for name in data.files if not name.startswith("sum/")]
            checks |= {f"{family}/{name}": data[name] for name in names[::10]}
        with np.load(folder / f"{family}_tiny_512x512.npz") as data:
            kept = {}
            for name, steps in _KEPT.items():
                if name in data.files:
                    kept[re.sub(r"_[ns]\d+$", "", name)] = data[name][
                        tuple(slice(None, None, step) for step in steps)
                    ]
        np.savez_compressed(DATA / f"{family}_tiny_512x512.npz", **kept)
        pack_losses(folder, family)
    packed = gzip.compress(json.dumps(keys, separators=(",", ":")).encode(), 9, mtime=0)
    (DATA / "families_keys.json.gz").write_bytes(packed)
    np.savez_compressed(DATA / "families_weights_check.npz", **checks)


if __name__ == "__main__":
    main()
