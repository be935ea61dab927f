"""Small latent diffusion model for the toy world, built from classes of diffusers and transformers.

The autoencoder (128 x 128 pixels to 4 x 32 x 32) is trained first. The UNet is then trained on its
latents, together with the text encoder (Rombach et al., arXiv 2112.10752, section 4.3).
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from matplotlib.figure import Figure
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.utils.logging import disable_progress_bar

from odise_mm.converters.claims import claim
from odise_mm.errors import ConfigError
from odise_mm.models.clip.word_tokenizer import WORDS_FILE
from odise_mm.utils.files import read_json, replacing
from projects.toy_world.pretraining.loop import random_of, write_json
from projects.toy_world.pretraining.text import CONTEXT_LENGTH, WORDS, tokenizer
from projects.toy_world.world import SIZE, scene

STRIDE = 4
VAE: dict[str, Any] = dict(
    sample_size=SIZE,
    latent_channels=4,
    block_out_channels=(32, 48, 64),
    layers_per_block=1,
    norm_num_groups=16,
    down_block_types=("DownEncoderBlock2D",) * 3,
    up_block_types=("UpDecoderBlock2D",) * 3,
    mid_block_add_attention=False,
)
UNET: dict[str, Any] = dict(
    sample_size=SIZE // STRIDE,
    in_channels=4,
    out_channels=4,
    block_out_channels=(48, 64, 96, 96),
    layers_per_block=1,
    norm_num_groups=16,
    cross_attention_dim=128,
    attention_head_dim=4,  # diffusers' name for the number of heads
    # attention only at 16 x 16 and 8 x 8, where it is cheap
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
)
TEXT: dict[str, Any] = dict(
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    hidden_act="quick_gelu",
    vocab_size=len(WORDS) + 3,
    max_position_embeddings=CONTEXT_LENGTH,
    projection_dim=128,
    pad_token_id=0,
    bos_token_id=len(WORDS) + 1,
    eos_token_id=len(WORDS) + 2,
)
# the same as in DiffusionBackbone and Stable Diffusion
SCHEDULE: dict[str, Any] = dict(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction_type="epsilon",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
)
PROMPTS = (
    "A red star on the grass below the sky",
    "a blue ring",
    "a yellow moon on the sand",
    "A striped purple heart on the snow",
    "two green triangles on the wood",
    "A black arrow above a white box",
    "a polka-dot red ball in the water",
    "the brick wall",
)
"""Prompts of the sample sheets."""
SAMPLE_STEPS = 30
GUIDANCE = 4.0
SCALE_SCENES = 128
"""Number of scenes on which the scale of the latents, a part of the model, is measured."""

_HELD_OUT = 10**6  # seed of the scenes for evaluation, split "val"
_CAPTION_DROPPED = 0.1  # probability of an empty caption
_KL = 1e-4  # weight of the KL divergence (mean over the latent)
_EDGES = 0.5  # weight of the differences between neighboring pixels


# --- autoencoder --------------------------------------------------------------------------------


class Crops(Dataset):
    """Dataset of square crops of scenes; item n is the same in every run.

    Args:
        length: Number of scenes.
        seed: Seed of the scenes and crops.
        size: Height and width of the crops, in pixels.
        per_scene: Number of crops per scene; an item is (per_scene, 3, size, size) uint8.
    """

    def __init__(self, length: int, seed: int, *, size: int = 64, per_scene: int = 2) -> None:
        self.length, self.seed, self.size, self.per_scene = length, seed, size, per_scene

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        image = _tensor(scene((self.seed, index)).image)
        corners = np.random.default_rng([self.seed, index]).integers(
            SIZE - self.size + 1, size=(self.per_scene, 2)
        )
        size = self.size
        return torch.stack([image[:, y : y + size, x : x + size] for y, x in corners.tolist()])


def autoencoder_losses(vae: AutoencoderKL, images: Tensor, noise: Tensor) -> dict[str, Tensor]:
    """Compute the weighted losses of an autoencoder.

    Args:
        vae: The autoencoder.
        images: (N, 3, S, S) in [-1, 1].
        noise: (N, 4, S / 4, S / 4) normal noise for sampling the latents.

    Returns:
        "l1", "edges" and "kl"; the training loss is their sum.
    """
    posterior = vae.encode(images).latent_dist
    mean, log_variance = posterior.mean.float(), posterior.logvar.float()
    made = vae.decode(mean + (log_variance / 2).exp() * noise).sample.float()
    edges = sum((made.diff(dim=axis) - images.diff(dim=axis)).abs().mean() for axis in (-1, -2))
    divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    return {
        "l1": (made - images).abs().mean(),
        "edges": _EDGES * edges,
        "kl": _KL * divergence,
    }


class AutoencoderEvaluation:
    """Reconstruction quality on held-out scenes, with a sheet of examples.

    Args:
        scenes: Number of scenes.
        sheet: PNG file of the sheet.
    """

    def __init__(self, scenes: int, sheet: Path) -> None:
        self.images = to_input(held_out(scenes)[0])
        self.sheet = sheet

    @torch.no_grad()
    def __call__(self, vae: AutoencoderKL) -> dict[str, float]:
        """Compute ``psnr`` in dB, the mean over images, and write the sheet."""
        made = []
        for part in self.images.split(16):
            latent = vae.encode(part.to(vae.device)).latent_dist.mean
            made.append(vae.decode(latent).sample.float().clamp(-1, 1).cpu())
        found = torch.cat(made)
        error = ((found - self.images) / 2).square().mean((1, 2, 3))
        rows = [torch.cat([self.images[i], found[i]], dim=1) for i in range(min(8, len(found)))]
        write_sheet(self.sheet, rows, [""] * len(rows))
        return {"psnr": float((-10 * error.log10()).mean())}


def scaling_factor(vae: AutoencoderKL) -> float:
    """Return 1 / standard deviation of the latents, which scales them to a deviation of 1.

    It is always measured on the same ``SCALE_SCENES`` scenes.
    """
    images = torch.stack([_tensor(scene((_HELD_OUT, i)).image) for i in range(SCALE_SCENES)])
    with torch.no_grad():
        parts = to_input(images).split(16)
        latents = [vae.encode(part.to(vae.device)).latent_dist.mean for part in parts]
    return round(1 / float(torch.cat(latents).float().std()), 5)


# --- latents ------------------------------------------------------------------------------------


_Captioned = tuple[Tensor, tuple[str, ...]]  # (3, 128, 128) uint8 image and its captions


class _Scenes(Dataset):
    """Dataset of images with all their captions."""

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed = length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> _Captioned:
        made = scene((self.seed, index))
        return _tensor(made.image), made.captions


# a function, because a lambda cannot be pickled for spawned workers
def _collate(items: Sequence[_Captioned]) -> tuple[Tensor, list[tuple[str, ...]]]:
    """Collate to (N, 3, 128, 128) uint8 images and a list of their captions."""
    images, captions = zip(*items, strict=True)
    return torch.stack(images), list(captions)


class Latents:
    """Latents of web scenes, computed once and stored on disk.

    ``FILE.npy`` has the latents, (scenes, 4, 32, 32) float16, multiplied by the scaling factor. It
    is memory-mapped. ``FILE.json`` records the autoencoder, the scenes, and the captions of the
    latents that are finished.

    Args:
        file: Path without suffix.
        vae: Autoencoder in eval mode.
        scenes: Number of scenes.
        seed: Seed of the scenes.
        workers: Number of processes that draw scenes.

    Raises:
        ConfigError: The files belong to another autoencoder or other scenes, or are damaged.
    """

    def __init__(
        self, file: Path, vae: AutoencoderKL, scenes: int, seed: int, workers: int = 0
    ) -> None:
        made_from = {"vae": digest(vae), "scenes": scenes, "seed": seed}
        array, record = file.with_suffix(".npy"), file.with_suffix(".json")
        shape = (scenes, 4, SIZE // STRIDE, SIZE // STRIDE)
        if record.is_file():
            known = read_json(record, ConfigError)
            found = known.get("made_from") if isinstance(known, dict) else None
            if found != made_from or not isinstance(known.get("captions"), list):
                raise ConfigError(
                    f"{record} belongs to another autoencoder or other scenes ({found}, not "
                    f"{made_from}), or is damaged; remove it to compute the latents again"
                )
        else:
            known = {"made_from": made_from, "captions": []}
            np.lib.format.open_memmap(array, "w+", np.float16, shape).flush()
        latents = np.lib.format.open_memmap(array, "r+")
        self.captions: list[list[str]] = known["captions"]
        if len(self.captions) < scenes:
            self._fill(latents, vae, seed, workers, known, record)
        self.latents = np.lib.format.open_memmap(array, "r")

    def _fill(
        self,
        latents: np.ndarray,
        vae: AutoencoderKL,
        seed: int,
        workers: int,
        known: dict[str, Any],
        record: Path,
    ) -> None:
        start, size = len(self.captions), 32
        rows = range(start, len(latents))
        data = DataLoader(
            _Scenes(len(latents), seed), size, sampler=rows, num_workers=workers,
            collate_fn=_collate,
        )  # fmt: skip
        for count, (images, captions) in enumerate(track(data, "latents"), 1):
            with torch.no_grad():
                inputs = to_input(images).to(vae.device)
                latent = vae.encode(inputs).latent_dist.mean.float() * vae.config.scaling_factor
            first = len(self.captions)
            latents[first : first + len(images)] = latent.cpu().numpy()
            self.captions += [list(one) for one in captions]
            if count % 64 == 0 or len(self.captions) == len(latents):
                latents.flush()  # before they are recorded as finished
                write_json(record, known)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """Draw random latents, (count, 4, 32, 32) float32, with one caption each."""
        rows = torch.randint(len(self.latents), (count,), generator=generator).tolist()
        which = torch.randint(10**6, (count,), generator=generator).tolist()
        texts = [
            self.captions[r][w % len(self.captions[r])] for r, w in zip(rows, which, strict=True)
        ]
        return torch.from_numpy(self.latents[np.array(rows)].astype(np.float32)), texts


def digest(module: nn.Module) -> str:
    """Return a hash of a module's weights."""
    found = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        found.update(key.encode() + value.detach().float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


# --- UNet and text encoder ----------------------------------------------------------------------


class TextToLatent(nn.Module):
    """UNet with the text encoder that is trained together with it."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(**UNET)
        self.text_encoder = CLIPTextModel(CLIPTextConfig(**TEXT))
        self.tokenizer = tokenizer()
        alphas_cumprod = DDIMScheduler(**SCHEDULE).alphas_cumprod
        self.register_buffer("alphas_cumprod", alphas_cumprod, persistent=False)

    def context(self, texts: Sequence[str]) -> Tensor:
        """Encode texts to the condition of the UNet, (N, 32, 128)."""
        tokens = self.tokenizer(texts).to(self.alphas_cumprod.device)
        return self.text_encoder(tokens).last_hidden_state

    def loss(self, latents: Tensor, texts: Sequence[str], steps: Tensor, noise: Tensor) -> Tensor:
        """Compute the mean squared error of the noise predicted from noisy latents.

        Args:
            latents: (N, 4, 32, 32).
            texts: N captions; some may be empty.
            steps: (N,) time steps.
            noise: (N, 4, 32, 32) normal noise.
        """
        alphas_cumprod = self.alphas_cumprod[steps].view(-1, 1, 1, 1)
        noisy = alphas_cumprod.sqrt() * latents + (1 - alphas_cumprod).sqrt() * noise
        found = self.unet(noisy, steps, self.context(texts)).sample
        return F.mse_loss(found.float(), noise)

    @torch.no_grad()
    def sample(self, texts: Sequence[str], noise: Tensor) -> Tensor:
        """Sample latents with DDIM and classifier-free guidance.

        Args:
            texts: N prompts.
            noise: (N, 4, 32, 32) normal noise.

        Returns:
            (N, 4, 32, 32) latents.
        """
        schedule = DDIMScheduler(**SCHEDULE)
        schedule.set_timesteps(SAMPLE_STEPS)
        context = self.context([*texts, *[""] * len(texts)])
        latents = noise
        for step in schedule.timesteps:
            both = self.unet(latents.repeat(2, 1, 1, 1), step, context).sample
            conditional, unconditional = both.chunk(2)
            found = unconditional + GUIDANCE * (conditional - unconditional)
            latents = schedule.step(found.float(), step, latents).prev_sample
        return latents


class TextToLatentLosses:
    """Losses of the steps of a training run.

    Args:
        model: The trained model.
        latents: Training data.
        batch_size: Latents per step.
        seed: Seed of the random numbers.
    """

    def __init__(self, model: TextToLatent, latents: Latents, batch_size: int, seed: int) -> None:
        self.model, self.latents = model, latents
        self.batch_size, self.seed = batch_size, seed

    def __call__(self, step: int) -> dict[str, Tensor]:
        device = self.model.alphas_cumprod.device
        generator = random_of(self.seed, step)
        latents, texts = self.latents.draw(self.batch_size, generator)
        dropped = torch.rand(self.batch_size, generator=generator) < _CAPTION_DROPPED
        texts = ["" if d else t for d, t in zip(dropped.tolist(), texts, strict=True)]
        steps = torch.randint(1000, (self.batch_size,), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        inputs = (latents.to(device), texts, steps.to(device), noise.to(device))
        return {"loss": self.model.loss(*inputs)}


class TextToLatentEvaluation:
    """Loss on held-out scenes, with a sheet of samples.

    Args:
        vae: Autoencoder in eval mode.
        scenes: Number of scenes.
        sheet: PNG file of the sheet.
    """

    def __init__(self, vae: AutoencoderKL, scenes: int, sheet: Path) -> None:
        self.vae, self.sheet = vae, sheet
        images, self.texts = held_out(scenes)
        with torch.no_grad():
            parts = [vae.encode(p.to(vae.device)) for p in to_input(images).split(16)]
        self.latents = torch.cat([p.latent_dist.mean for p in parts]) * vae.config.scaling_factor

    @torch.no_grad()
    def __call__(self, model: TextToLatent) -> dict[str, float]:
        """Compute mean losses, and write the sheet.

        ``val``: with captions; ``val_unconditional``: without captions; ``val_early``: with
        captions, at time steps below 250.
        """
        device = self.latents.device
        generator = random_of(_HELD_OUT)
        noise = torch.randn(self.latents.shape, generator=generator).to(device)
        steps = torch.linspace(0, 999, len(noise)).long().to(device)
        conditional, unconditional, early = [], [], []
        for first in range(0, len(noise), 32):
            part = slice(first, first + 32)
            texts = self.texts[part]
            inputs = self.latents[part], texts, steps[part], noise[part]
            empty = [""] * len(texts)
            conditional.append(model.loss(*inputs) * len(texts))
            unconditional.append(model.loss(inputs[0], empty, *inputs[2:]) * len(texts))
            early.append(model.loss(*inputs[:2], inputs[2] // 4, inputs[3]) * len(texts))
        self.draw(model)
        names = {"val": conditional, "val_unconditional": unconditional, "val_early": early}
        return {name: float(sum(some)) / len(noise) for name, some in names.items()}

    def draw(self, model: TextToLatent) -> None:
        """Write a sheet of samples for ``PROMPTS``, always from the same noise."""
        edge = SIZE // STRIDE
        noise = torch.randn(len(PROMPTS), 4, edge, edge, generator=random_of(_HELD_OUT, 1))
        latents = model.sample(PROMPTS, noise.to(self.latents.device))
        with torch.no_grad():
            made = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        write_sheet(self.sheet, list(made.float().cpu()), PROMPTS)


# --- images and files -------------------------------------------------------------------------


def held_out(count: int) -> tuple[Tensor, list[str]]:
    """Return scenes that are never used for training: (N, 3, 128, 128) uint8 and N captions."""
    made = [scene((_HELD_OUT, i), "val") for i in range(count)]
    return torch.stack([_tensor(one.image) for one in made]), [one.captions[0] for one in made]


def to_input(images: Tensor) -> Tensor:
    """Convert uint8 images to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def write_sheet(path: Path, images: Sequence[Tensor], titles: Sequence[str]) -> None:
    """Write a PNG file with images and titles.

    Args:
        path: The file.
        images: (3, H, W) images in [-1, 1].
        titles: Title of each image.
    """
    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    height = 2.4 * images[0].shape[1] / images[0].shape[2]
    figure = Figure(figsize=(2.4 * columns, (height + 0.3) * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, image, title in zip(axes, images, titles, strict=False):
        axis.imshow((image.clamp(-1, 1).permute(1, 2, 0).numpy() + 1) / 2)
        axis.set_title(title, fontsize=7)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def export(folder: Path, vae: AutoencoderKL, model: TextToLatent) -> None:
    """Write a model in diffusers' layout, float16, for ``DiffusionBackbone(folder, folder)``.

    Raises:
        DatasetError: The folder exists and was not written by this function.
    """
    claim(folder.parent, [folder])
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    disable_progress_bar()
    (temporary / "tokenizer").mkdir(parents=True)
    tokenizer().save(temporary / "tokenizer" / WORDS_FILE)
    DDIMScheduler(**SCHEDULE).save_pretrained(temporary / "scheduler")
    # new modules, because only the files are in half precision
    for part, fresh, trained in (
        ("vae", AutoencoderKL(**VAE, scaling_factor=vae.config.scaling_factor), vae),
        ("unet", UNet2DConditionModel(**UNET), model.unet),
        ("text_encoder", CLIPTextModel(CLIPTextConfig(**TEXT)), model.text_encoder),
    ):
        fresh.load_state_dict(trained.state_dict())
        fresh.half().save_pretrained(temporary / part)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def _tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).contiguous()
