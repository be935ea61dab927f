#!/usr/bin/env python
"""Score the shipped weights on a fixed set of held-out scenes, for the model card.

    clip         zero-shot accuracy on crops of things and with mask tokens of true masks
    autoencoder  PSNR on whole scenes
    unet         error of the predicted noise, with and without captions
    odise_*      PQ, mAP and mIoU of tools/test.py, also for base and novel names

The scenes belong to split `val`: seed 1,000,000 for the pre-trained models, seed 0 (as on disk) for
ODISE. All numbers are computed in float32.

Example:
    python projects/toy_world/score.py --out projects/toy_world/weights/scores.json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel

from odise_mm.benchmarks.tables import Table, show
from odise_mm.cli import test as test_program
from odise_mm.errors import DatasetError
from odise_mm.models import FrozenCLIP
from odise_mm.utils.command_line import Parser, one_line_errors, positive_int
from odise_mm.utils.display import printable
from odise_mm.utils.files import read_json
from odise_mm.utils.outputs import check_outputs
from projects.toy_world import generate
from projects.toy_world.pretraining import clip, diffusion
from projects.toy_world.pretraining.loop import write_json

WEIGHTS = Path(__file__).parent / "weights"
SCENES = 50
_METRICS = ("panoptic/{}PQ", "instance/{}AP", "semantic/{}mIoU")

Scores = dict[str, dict[str, float]]


def score_clip(folder: Path, scenes: int) -> dict[str, float]:
    """Compute the accuracies of CLIP, in percent.

    See :class:`projects.toy_world.pretraining.clip.Evaluation`.
    """
    model = FrozenCLIP(str(folder), weights=str(folder)).model.float()
    found = clip.Evaluation(scenes, torch.device("cpu"))(model)
    return {name: 100 * share for name, share in found.items()}


def score_diffusion(folder: Path, scenes: int) -> Scores:
    """Compute the PSNR in dB, and the mean squared errors of the predicted noise."""
    vae = AutoencoderKL.from_pretrained(folder / "vae", local_files_only=True).float().eval()
    model = diffusion.TextToLatent()
    parts = {"unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}
    for part, kind in parts.items():
        setattr(model, part, kind.from_pretrained(folder / part, local_files_only=True).float())
    model.eval()
    with TemporaryDirectory() as sheets:
        autoencoder = diffusion.AutoencoderEvaluation(scenes, Path(sheets) / "vae.png")
        unet = diffusion.TextToLatentEvaluation(vae, scenes, Path(sheets) / "unet.png")
        return {"autoencoder": autoencoder(vae), "unet": unet(model)}


def score_odise(checkpoint: Path, data_root: Path) -> dict[str, float]:
    """Return the results of tools/test.py for all names, base and novel things, in percent."""
    out = data_root / f"{checkpoint.stem}.json"
    config = checkpoint.stem.replace("odise_", "odise_toy_")
    arguments = [config, str(checkpoint), "--data-root", str(data_root.parent)]
    options = ["--out", str(out), "--work-dir", str(data_root / "log")]
    if test_program.main([*arguments, *options, "--cfg-options", "log_level=WARNING"]):
        raise RuntimeError(f"tools/test.py failed with {checkpoint}")
    (found,) = read_json(out, DatasetError)["sets"].values()
    names = [metric.format(group) for group in ("", "base/", "novel/") for metric in _METRICS]
    return {name: found["metrics"][name] for name in [*names, "panoptic/PQ_st"]}


def score(weights: Path, scenes: int) -> Scores:
    """Score all weights in a folder."""
    scores = {"clip": score_clip(weights / "clip", scenes)}
    scores |= score_diffusion(weights / "diffusion", scenes)
    with TemporaryDirectory() as folder:
        data_root = Path(folder) / "toy_world"
        generate.main([str(data_root), "--splits", "val", "--number", str(scenes)])
        for checkpoint in sorted(weights.glob("odise_*.safetensors")):
            scores[checkpoint.stem] = score_odise(checkpoint, data_root)
    return scores


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add(
        "--weights", type=Path, default=WEIGHTS, help="folder of the weights (default: %(default)s)"
    )
    add(
        "--scenes",
        type=positive_int,
        default=SCENES,
        help="number of scenes (default: %(default)s)",
    )
    add("--out", type=Path, metavar="FILE", help="JSON file to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with one_line_errors():
        read = (path for path in args.weights.rglob("*") if path.parent != args.weights)
        check_outputs([args.out], [*read, *args.weights.glob("*.safetensors")])
        scores = score(args.weights, args.scenes)
        table = Table("Scores of the weights", ["part", "number", "value"])
        table.rows = [
            [part, name, f"{value:.3f}"]
            for part, numbers in scores.items()
            for name, value in numbers.items()
        ]
        show([table], scores, "table")
        if args.out:
            write_json(args.out, {"scenes": args.scenes, **scores})
            print(f"wrote {printable(args.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
