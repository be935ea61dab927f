"""Recorded numbers of MaskCLIP++ on masks of FC-CLIP, and the random weights they were made with.

Like :mod:`tests.support.golden_families`. ``python -m tests.support.golden_maskclippp FOLDER`` has
thinned out the complete recording.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from safetensors.torch import save_file

from tests.support import golden_families
from tests.support.golden import DATA, draw_parameter
from tests.support.golden_families import CLIP, Case

CONFIGS = Path(__file__).parents[2] / "configs/maskclippp"
# First pattern found in the key wins. All other keys follow the common rule.
_EXCEPTIONS: tuple[tuple[str, str, float], ...] = (
    (r"^psm\.ln_1\.weight$", "normal", 8.0),
    (r"^psm\.img2text\.in_proj_weight$", "rule", 4.0),
    (r"^psm\.img2text\.out_proj\.(weight|bias)$", "rule", 0.1),
)
_SALTS = {"psm.ln_1.weight": "#1116"}


def parameter(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the random float32 value of a parameter of the tiny model, from its published key."""
    return draw_parameter(key, shape, _EXCEPTIONS, _SALTS.get(key, ""))


@lru_cache(maxsize=1)
def shapes() -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the parameters of the tiny model's published checkpoint."""
    keys = json.loads(gzip.decompress((DATA / "maskclippp_keys.json.gz").read_bytes()))
    return {key: tuple(shape) for key, shape in keys.items()}


def write_checkpoint(path: Path) -> Path:
    """Write the tiny model's checkpoint as it is published: image tower and text adapter."""
    state = {key: torch.from_numpy(parameter(key, shape)) for key, shape in shapes().items()}
    torch.save({"model": state}, path)
    return path


def write_clip(path: Path) -> Path:
    """Write the CLIP that text tower and mask generator come from, as open_clip does."""
    prefix = "backbone.clip_model."
    state = {
        key.removeprefix(prefix): torch.from_numpy(golden_families.parameter("fcclip", key, shape))
        for key, shape in golden_families.shapes("fcclip").items()
        if key.startswith(prefix)
    }
    save_file(state, path)
    return path


def tiny_config(folder: Path, name: str = "maskclippp_convnext_l") -> Config:
    """The published config with the tiny CLIP; writes the files of CLIP and FC-CLIP to a folder."""
    config = Config.fromfile(CONFIGS / f"{name}.py")
    generator = config.model.proposals.segmentor
    for clip in (config.model.clip, generator.clip):
        clip.update(model=CLIP, weights=str(write_clip(folder / "clip.safetensors")))
    generator.head.embed_dim = CLIP["embed_dim"]
    config.model.proposals.weights = str(
        golden_families.write_checkpoint(folder / "fcclip.pth", "fcclip")
    )
    return config


def load_case() -> Case:
    """Load the recorded case from ``tests/data``."""
    return golden_families.load_case("maskclippp")


def check_values() -> dict[str, np.ndarray]:
    """First eight values of some parameters, as recorded."""
    case = load_case()
    return {
        name.removeprefix("check/"): case[name] for name in case.arrays if name.startswith("check/")
    }


# Recorded arrays that are kept, with strides on top of those of the recording.
_KEPT: dict[str, tuple[int, ...]] = {
    "input_f_s8": (1, 1, 4, 4),
    "input_s8": (1, 1, 4, 4),
    **{f"stage{level}_f_n16": (1, 4 * 2**level) for level in range(1, 5)},
    "mask_features_n32": (1, 10, 2, 2),
    "pred_masks_q0_9_s2": (1, 4, 4),
    "pred_logits": (),
    "p_embs_n20": (1, 4),
    "m_embs": (1, 2),
    "areas": (),
    "test_t_embs_f": (),
    "img_cond_s7": (),
    "text_adapted": (),
    "mask_logits": (),
    "mask_cls_results": (),
    "panoptic_seg": (),
    "panoptic_seg_ot03": (),
    "segments_info": (),
    "segments_info_ot03": (),
    "sem_seg_argmax": (),
    "inst_all_scores": (),
    "ens_mask_cls_results": (),
    "ens_panoptic_seg": (),
    "ens_segments_info": (),
    "ens_sem_seg_argmax": (),
}


def main() -> None:
    """Thin out the complete recording in the folder of the command line."""
    folder = Path(sys.argv[1])
    keys = json.loads((folder / "keys.json").read_text())["tiny/maskclippp_checkpoint"]
    packed = gzip.compress(json.dumps(keys, separators=(",", ":")).encode(), 9, mtime=0)
    (DATA / "maskclippp_keys.json.gz").write_bytes(packed)
    kept = {}
    with np.load(folder / "maskclippp_tiny_512x512.npz") as data:
        for name, steps in _KEPT.items():
            part = data[name][tuple(slice(None, None, step) for step in steps)]
            kept[re.sub(r"_[ns]\d+$", "", name)] = part
    with np.load(folder / "maskclippp_tiny_weights_check.npz") as data:
        names = [name for name in data.files if not name.startswith("sum/")]
        kept |= {f"check/{name}": data[name] for name in names}
    np.savez_compressed(DATA / "maskclippp_tiny_512x512.npz", **kept)


if __name__ == "__main__":
    main()
