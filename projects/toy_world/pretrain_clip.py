#!/usr/bin/env python
"""Train the CLIP of the toy world: 1.5 million parameters, 64-pixel images, 85 words.

    OUT/open_clip_config.json, open_clip_model.safetensors, words.txt
                      the model, for FrozenCLIP(model=OUT, weights=OUT)
    OUT/metrics.json  settings, minutes, machine, accuracy at every evaluation
    OUT/curves.png    plot of these accuracies
    OUT/training.pth  the training state; run the same command again to continue an interrupted run

The defaults are the settings of the shipped weights.

Example:
    python projects/toy_world/pretrain_clip.py --out work_dirs/toy_world/clip
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import open_clip
import torch

from odise_mm.converters.claims import claim
from odise_mm.utils.command_line import Parser, one_line_errors, positive_int
from odise_mm.utils.device import pick_device
from odise_mm.utils.display import printable
from odise_mm.utils.files import FolderLock
from projects.toy_world.pretraining import clip, loop

OUTPUTS = (clip.CONFIG_FILE, clip.WEIGHTS_FILE, clip.WORDS_FILE, "metrics.json", "curves.png")
STATE = "training.pth"

PANELS = {
    "loss": ["loss"],
    "things on crops": ["crop", "crop_novel", "crop_color", "crop_shape", "crop_pattern"],
    "mask tokens": ["mask_base", "mask_novel", "mask_stuff", "mask_color", "mask_shape"],
}
_MOST_STEPS = 10**6


def train(args: argparse.Namespace, until: int | None = None) -> loop.Training:
    """Train, or continue an interrupted run.

    Args:
        args: Parsed command line.
        until: Stop after this number of steps, as if interrupted.
    """
    device = pick_device(args.device)
    recipe = loop.Recipe(
        steps=args.steps,
        lr=args.lr,
        warmup=min(200, args.steps // 5),
        weight_decay=0.1,
        muon_lr=args.muon_lr,
        beta2=0.98,
        seed=args.seed,
        precision=args.precision or loop.best_precision(device),
        math_attention=True,
    )
    settings = {
        "model": clip.MODEL,
        "scenes_per_step": args.scenes,
        "regions_per_scene": args.regions,
        "regions_every": args.regions_every,
        "masked_regions_per_scene": args.masked_regions,
        "mask_tokens": args.mask_tokens,
    }
    torch.manual_seed(args.seed)
    model = open_clip.CLIP(**clip.MODEL).to(device)
    training = loop.Training(model, recipe, args.out / STATE, settings)
    vision = clip.MODEL["vision_cfg"]
    # longer than any run, so that the data of a step does not depend on the number of steps
    stream = clip.Web(
        _MOST_STEPS * args.scenes, args.seed, vision["image_size"], vision["patch_size"],
        args.regions, args.regions_every, args.masked_regions,
    )  # fmt: skip
    batches = loop.batches(stream, args.scenes, training.step, clip.collate, args.workers)
    step = clip.Step(model, args.mask_tokens)
    evaluation = clip.Evaluation(args.val_scenes, device)

    def evaluate() -> dict[str, float]:
        clip.export(model, args.out)
        return evaluation(model)

    training.run("CLIP", lambda _: step(next(batches)), evaluate, args.every, until)
    return training


def write_results(training: loop.Training, out: Path) -> None:
    """Write model, metrics and curves of a training run."""
    clip.export(training.trained, out)
    loop.write_json(out / "metrics.json", loop.describe(training))
    loop.write_figure(out / "curves.png", loop.curves(training.log, PANELS))
    print(f"{printable(out)}: {loop.size_of(out) / 1e6:.1f} MB of weights")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("work_dirs/toy_world/clip"), help="default: %(default)s")
    add("--steps", type=positive_int, default=2400, help="default: %(default)s")
    add("--scenes", type=positive_int, default=100, help="scenes per step (default: %(default)s)")
    add(
        "--regions",
        type=positive_int,
        default=1,
        help="regions of a scene used as images (default: %(default)s)",
    )
    add(
        "--regions-every",
        type=positive_int,
        default=8,
        help="only one of this number of scenes has regions used as images, which take much time "
        "(default: %(default)s)",
    )
    add(
        "--masked-regions",
        type=positive_int,
        default=6,
        help="regions per scene used as mask tokens, which take little time (default: %(default)s)",
    )
    add(
        "--mask-tokens",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also learn masked regions as tokens of the whole image, as the segmentation model "
        "uses them (default: yes)",
    )
    add("--lr", type=float, default=1e-3, help="highest learning rate (default: %(default)s)")
    add(
        "--muon-lr",
        type=float,
        default=0.02,
        help="highest learning rate of Muon, which trains the linear layers and needs torch 2.9 or "
        "newer; 0: AdamW trains everything (default: %(default)s)",
    )
    add("--every", type=positive_int, default=200, help="steps between evaluations (default: 200)")
    add("--val-scenes", type=positive_int, default=250, help="scenes per evaluation (default: 250)")
    add("--workers", type=int, default=1, help="number of processes that draw scenes (default: 1)")
    add("--seed", type=int, default=0, help="default: 0")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, mps (default: cpu)")
    add(
        "--precision",
        choices=loop.PRECISIONS,
        help="default: bf16 if the device supports it in hardware, otherwise fp32",
    )
    args = parser.parse_args(argv)
    if args.seed < 0 or args.workers < 0 or args.lr <= 0 or args.muon_lr < 0:
        parser.error("--seed, --workers and --muon-lr must be at least 0, and --lr above 0")
    if args.muon_lr and not hasattr(torch.optim, "Muon"):
        parser.error(f"Muon needs torch 2.9 or newer, not {torch.__version__}; use --muon-lr 0")
    if args.regions_every > args.scenes:
        parser.error("--regions-every must be at most --scenes, so that every step has regions")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with one_line_errors():
        pick_device(args.device)  # fails before a folder is created
        with FolderLock(args.out, "pretraining"):
            claim(args.out, [args.out / name for name in OUTPUTS], [args.out / STATE])
            write_results(train(args), args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
