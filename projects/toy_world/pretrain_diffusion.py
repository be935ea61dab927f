#!/usr/bin/env python
"""Train the text-to-image diffusion model of the toy world.

First the autoencoder is trained, then the UNet together with the text encoder.

    OUT/model/             the model in diffusers' layout: DiffusionBackbone's `arch` and `weights`
    OUT/metrics.json       settings, minutes, machine, losses and PSNR at every evaluation
    OUT/reconstructions.png, samples.png   images drawn during training
    OUT/vae_curves.png, unet_curves.png
    OUT/vae.pth, latents.npy, latents.json, unet.pth   the training state; run the same command
                           again to continue an interrupted run; not needed afterwards

The defaults are the settings of the shipped weights.

Example:
    python projects/toy_world/pretrain_diffusion.py --out work_dirs/toy_world/diffusion
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from odise_mm.converters.claims import claim
from odise_mm.utils.command_line import Parser, one_line_errors, positive_int
from odise_mm.utils.device import pick_device
from odise_mm.utils.display import printable
from odise_mm.utils.files import FolderLock
from projects.toy_world.pretraining import diffusion, loop

OUTPUTS = (
    "model", "metrics.json", "reconstructions.png", "samples.png", "vae_curves.png",
    "unet_curves.png", "latents.npy", "latents.json",
)  # fmt: skip
STATES = ("vae.pth", "unet.pth")

_MOST_STEPS = 10**6


def train_autoencoder(args: argparse.Namespace, until: int | None = None) -> loop.Training:
    """Train the autoencoder, or continue an interrupted run.

    Args:
        args: Parsed command line.
        until: Stop after this number of steps, as if interrupted.
    """
    device = pick_device(args.device)
    recipe = loop.Recipe(
        steps=args.vae_steps,
        lr=args.vae_lr,
        warmup=min(100, args.vae_steps // 5),
        weight_decay=0.0,
        seed=args.seed,
        precision=args.precision or loop.best_precision(device),
    )
    torch.manual_seed(args.seed)
    vae = AutoencoderKL(**diffusion.VAE).to(device)
    settings = {"model": diffusion.VAE, "scenes_per_step": args.vae_scenes}
    training = loop.Training(vae, recipe, args.out / "vae.pth", settings)
    if training.done:
        return training
    stream = diffusion.Crops(_MOST_STEPS * args.vae_scenes, args.seed)
    batches = loop.batches(stream, args.vae_scenes, training.step, torch.cat, args.workers)

    def losses(step: int) -> dict[str, torch.Tensor]:
        images = diffusion.to_input(next(batches)).to(device)
        size = (len(images), 4, *(edge // diffusion.STRIDE for edge in images.shape[2:]))
        noise = torch.randn(size, generator=loop.random_of(args.seed, step)).to(device)
        return diffusion.autoencoder_losses(vae, images, noise)

    evaluation = diffusion.AutoencoderEvaluation(args.val_scenes, args.out / "reconstructions.png")
    training.run("autoencoder", losses, lambda: evaluation(vae), args.every, until)
    return training


def train_unet(
    args: argparse.Namespace, vae: AutoencoderKL, until: int | None = None
) -> loop.Training:
    """Train UNet and text encoder, or continue an interrupted run.

    Args:
        args: Parsed command line.
        vae: Autoencoder whose latents are the training data.
        until: Stop after this number of steps, as if interrupted.
    """
    device = pick_device(args.device)
    recipe = loop.Recipe(
        steps=args.steps,
        lr=args.lr,
        warmup=min(500, args.steps // 5),
        weight_decay=0.01,
        ema=0.999,
        seed=args.seed,
        precision=args.precision or loop.best_precision(device),
    )
    torch.manual_seed(args.seed)
    model = diffusion.TextToLatent().to(device)
    settings: dict[str, Any] = {
        "unet": diffusion.UNET,
        "text_encoder": diffusion.TEXT,
        "batch_size": args.batch_size,
        "scenes": args.scenes,
        "autoencoder": diffusion.digest(vae),
    }
    training = loop.Training(model, recipe, args.out / "unet.pth", settings)
    latents = diffusion.Latents(args.out / "latents", vae, args.scenes, args.seed, args.workers)
    losses = diffusion.TextToLatentLosses(model, latents, args.batch_size, args.seed)
    evaluation = diffusion.TextToLatentEvaluation(vae, args.val_scenes, args.out / "samples.png")

    def evaluate() -> dict[str, float]:
        diffusion.export(args.out / "model", vae, training.trained)
        return evaluation(training.trained)

    training.run("UNet", losses, evaluate, args.every, until)
    return training


def finished_autoencoder(training: loop.Training) -> AutoencoderKL:
    """Return the trained autoencoder, with the measured scale of its latents."""
    vae = training.trained.eval().requires_grad_(False)
    vae.register_to_config(scaling_factor=diffusion.scaling_factor(vae))
    return vae


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    default = "default: %(default)s"
    add("--out", type=Path, default=Path("work_dirs/toy_world/diffusion"), help=default)
    add(
        "--vae-steps", type=positive_int, default=2000, help=f"steps of the autoencoder ({default})"
    )
    add(
        "--vae-scenes",
        type=positive_int,
        default=8,
        help=f"scenes per step of the autoencoder, with 2 crops each ({default})",
    )
    add(
        "--vae-lr",
        type=float,
        default=1e-3,
        help=f"highest learning rate of the autoencoder ({default})",
    )
    add("--steps", type=positive_int, default=2500, help=f"steps of the UNet ({default})")
    add("--batch-size", type=positive_int, default=32, help=f"batch size of the UNet ({default})")
    add("--lr", type=float, default=5e-4, help=f"highest learning rate of the UNet ({default})")
    add(
        "--scenes",
        type=positive_int,
        default=10000,
        help=f"training scenes of the UNet ({default})",
    )
    add("--every", type=positive_int, default=500, help=f"steps between evaluations ({default})")
    add("--val-scenes", type=positive_int, default=128, help=f"scenes per evaluation ({default})")
    add("--workers", type=int, default=1, help=f"number of processes that draw scenes ({default})")
    add("--seed", type=int, default=0, help=default)
    add("--device", default="cpu", help=f"cpu, cuda, cuda:1, mps ({default})")
    add(
        "--precision",
        choices=loop.PRECISIONS,
        help="default: bf16 if the device supports it in hardware, otherwise fp32",
    )
    args = parser.parse_args(argv)
    if args.seed < 0 or args.workers < 0 or min(args.lr, args.vae_lr) <= 0:
        parser.error("--seed and --workers must be at least 0, and learning rates above 0")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with one_line_errors():
        pick_device(args.device)  # fails before a folder is created
        with FolderLock(args.out, "pretraining"):
            states = [args.out / name for name in STATES]
            claim(args.out, [args.out / name for name in OUTPUTS], states)
            first = train_autoencoder(args)
            panels = {"losses": ["l1", "edges", "kl"], "PSNR (dB)": ["psnr"]}
            loop.write_figure(args.out / "vae_curves.png", loop.curves(first.log, panels))
            vae = finished_autoencoder(first)
            second = train_unet(args, vae)
            losses = ["loss", "val", "val_unconditional"]
            panels = {"losses": losses, "loss, steps < 250": ["val_early"]}
            loop.write_figure(args.out / "unet_curves.png", loop.curves(second.log, panels))
            diffusion.export(args.out / "model", vae, second.trained)
            parts = {"autoencoder": first, "unet": second}
            results = {name: loop.describe(part) for name, part in parts.items()}
            results["scaling_factor"] = vae.config.scaling_factor
            loop.write_json(args.out / "metrics.json", results)
            print(
                f"{printable(args.out)}: {loop.size_of(args.out / 'model') / 1e6:.1f} MB of weights"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
