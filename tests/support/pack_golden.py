"""Subsamples the complete recordings and writes them to ``tests/data``.

Usage: ``python -m tests.support.pack_golden FOLDER``. The tests do not run this program; it
documents how the files in ``tests/data`` were made.
"""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support import golden

# Strides in addition to those of the recordings, starting with the first axis. Strides over
# channels are odd so that they select all positions within a normalization group.
EXTRA: dict[str, list[int]] = {
    "crop_img": [1, 1, 2, 2],
    "latent": [1, 1, 2, 2],
    "noisy_latent": [1, 1, 2, 2],
    **{f"feat{i}": [1, 5, 1, 1] for i in range(8)},
    **{f"backbone_s{i}": [1, 11, 1, 1] for i in range(2, 6)},
    **{f"multi_scale_{i}": [1, 5, 1, 1] for i in range(3)},
    "mask_features": [1, 5, 2, 2],
    "pred_masks": [1, 4, 4],
    "aux0_pred_masks": [1, 2, 2],
    "aux4_pred_masks": [1, 2, 2],
    "mask_pooled_features": [1, 1, 3],
    "mask_embed": [1, 1, 3],
    "decoder_output_last": [1, 1, 3],
    "sem_seg": [1, 2, 2],
}
UNUSED = ("unet_out", "decoded", "sem_seg_margin")


def pack_case(source: Path, name: str) -> None:
    """Pack the stages of a case."""
    arrays, index = golden._read_full(source / f"{name}.npz")
    out = {}
    for stage, array in arrays.items():
        if stage in UNUSED:
            continue
        extra = EXTRA.get(stage, [1] * array.ndim)
        if stage == "pred_masks":  # some are already recorded with a stride of 2
            extra = [1] + [4 // s for s in index[stage]["steps"][1:]]
        out[stage] = array[tuple(slice(None, None, s) for s in extra)]
        index[stage]["steps"] = [a * b for a, b in zip(index[stage]["steps"], extra, strict=True)]
    kept = {k: v for k, v in index.items() if k in out}
    np.savez_compressed(golden.DATA / f"{name}.npz", **out, index=np.array(json.dumps(kept)))


def pack_postproc(source: Path) -> None:
    """Pack the post-processing cases, with mask logits in half precision.

    This changes 2 and 0 pixels of the semantic maps, and no other results.
    """
    out = {}
    for case in golden.POSTPROC_CASES:
        if case == "c1":  # similar to c0, but with fewer segments
            continue
        arrays = golden.load_postproc(case, source)
        arrays["mask_pred"] = arrays["mask_pred"].astype(np.float16)
        arrays["sem_seg_argmax"] = arrays["sem_seg_argmax"].astype(np.uint8)
        del arrays["sem_seg"]
        out.update({f"{case}_{key}": value for key, value in arrays.items()})
    np.savez_compressed(golden.DATA / "postproc.npz", **out)


def pack_gradients(source: Path) -> None:
    """Pack the double-precision gradients: the captioner's, and rows of the projections'."""
    out = {}
    with np.load(source / "captioner_gradients.npz") as data:
        for key in data.files:
            if not key.endswith("_f64") and "_f64/" not in key:
                continue
            if "ldm_extractor" in key:  # gradients of frozen weights, which nothing uses
                continue
            step = golden.PROJECTION_ROWS if "feature_projections" in key else 1
            array = data[key]
            out[key] = array[::step] if array.ndim else array
    np.savez_compressed(golden.DATA / "captioner_gradients.npz", **out)


def main() -> None:
    """Pack all recordings."""
    source = Path(sys.argv[1])
    golden.DATA.mkdir(exist_ok=True)
    keys = json.loads((source / "keys.json").read_text())
    packed = gzip.compress(json.dumps(keys, separators=(",", ":")).encode(), 9, mtime=0)
    (golden.DATA / "keys.json.gz").write_bytes(packed)
    shutil.copyfile(source / "tiny_weights_check.npz", golden.DATA / "tiny_weights_check.npz")
    with np.load(source / "inputs.npz") as inputs:
        names = sorted({case.rsplit("_", 1)[1] for case in golden.CASES})
        for name in names:
            image = Image.fromarray(inputs[f"image_{name}"])
            image.save(golden.DATA / f"image_{name}.png", optimize=True)
        facts = {
            "labels": json.loads(str(inputs["test_labels"])),
            "thing_ids": inputs["thing_ids"].tolist(),
            "seen": [c == "T" for c in "TTTFFTTTTFFF"],
            "out_hw": {n: inputs[f"out_hw_{n}"].tolist() for n in names},
        }
    (golden.DATA / "inputs.json").write_text(json.dumps(facts, indent=1) + "\n")
    for case in golden.CASES:
        pack_case(source, case)
    pack_postproc(source)
    pack_gradients(source)
    shutil.copyfile(source / "grounding_loss.npz", golden.DATA / "grounding_loss.npz")


if __name__ == "__main__":
    main()
