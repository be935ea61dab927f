"""A small latent diffusion model of the toy world, of diffusers' and transformers' own classes.

First an autoencoder (128 x 128 pixels to 4 x 32 x 32), then, on its latents, a UNet together with
the text encoder that it listens to, as in Rombach et al., arXiv 2112.10752, section 4.3.
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
    # attention where it is cheap: at 16 x 16 and 8 x 8
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
# as DiffusionBackbone and Stable Diffusion have it
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
"""What the sample sheets show."""
SAMPLE_STEPS = 30
GUIDANCE = 4.0
SCALE_SCENES = 128
"""That the scale of the latents is measured on: it is part of the model."""

_HELD_OUT = 10**6  # seed of the scenes for evaluation, of split "val"
_CAPTION_DROPPED = 0.1
_KL = 1e-4  # of the latent's divergence per number, against absolute differences in [-1, 1]
_EDGES = 0.5  # of differences between neighbouring pixels


# --- autoencoder --------------------------------------------------------------------------------


class Crops(Dataset):
    """Square parts of scenes, (k, 3, size, size) uint8; item n is the same in every run."""

    def __init__(self, length: int, seed: int, *, size: int = 64, per_scene: int = 2) -> None:
        self.length, self.seed, self.size, self.per_scene = length, seed, size, per_scene

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        picture = _tensor(scene((self.seed, index)).image)
        corners = np.random.default_rng([self.seed, index]).integers(
            SIZE - self.size + 1, size=(self.per_scene, 2)
        )
        size = self.size
        return torch.stack([picture[:, y : y + size, x : x + size] for y, x in corners.tolist()])


def autoencoder_losses(vae: AutoencoderKL, pictures: Tensor, noise: Tensor) -> dict[str, Tensor]:
    """Losses of an autoencoder, each with its weight.

    Args:
        images: (N, 3, S, S) in [-1, 1].
        noise: normal, (N, 4, S / 4, S / 4); what the latent is drawn with.
    """
    posterior = vae.encode(pictures).latent_dist
    mean, log_variance = posterior.mean.float(), posterior.logvar.float()
    made = vae.decode(mean + (log_variance / 2).exp() * noise).sample.float()
    edges = sum((made.diff(dim=axis) - pictures.diff(dim=axis)).abs().mean() for axis in (-1, -2))
    divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    return {
        "l1": (made - pictures).abs().mean(),
        "edges": _EDGES * edges,
        "kl": _KL * divergence,
    }


class AutoencoderEvaluation:
    """How well held-out scenes come back; a picture of some of them.

    Args:
        scenes: how many.
        sheet: file of the picture.
    """

    def __init__(self, scenes: int, sheet: Path) -> None:
        self.pictures = to_input(held_out(scenes)[0])
        self.sheet = sheet

    @torch.no_grad()
    def __call__(self, vae: AutoencoderKL) -> dict[str, float]:
        """``psnr`` in dB, mean over images."""
        made = []
        for part in self.pictures.split(16):
            latent = vae.encode(part.to(vae.device)).latent_dist.mean
            made.append(vae.decode(latent).sample.float().clamp(-1, 1).cpu())
        found = torch.cat(made)
        error = ((found - self.pictures) / 2).square().mean((1, 2, 3))
        rows = [torch.cat([self.pictures[i], found[i]], dim=1) for i in range(min(8, len(found)))]
        write_sheet(self.sheet, rows, [""] * len(rows))
        return {"psnr": float((-10 * error.log10()).mean())}


def scaling_factor(vae: AutoencoderKL) -> float:
    """1 / standard deviation of latents, so that the UNet gets numbers around 1.

    Always measured on the same ``SCALE_SCENES`` scenes.
    """
    pictures = torch.stack([_tensor(scene((_HELD_OUT, i)).image) for i in range(SCALE_SCENES)])
    with torch.no_grad():
        parts = to_input(pictures).split(16)
        latents = [vae.encode(part.to(vae.device)).latent_dist.mean for part in parts]
    return round(1 / float(torch.cat(latents).float().std()), 5)


# --- latents ------------------------------------------------------------------------------------


Imaged = tuple[Tensor, tuple[str, ...]]  # an image (3, 128, 128) uint8 and all its captions


class _Scenes(Dataset):
    """Images and all their captions."""

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed = length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Imaged:
        made = scene((self.seed, index))
        return _tensor(made.image), made.captions


# with a name of its own: a lambda cannot be sent to workers that are spawned
def _collate(items: Sequence[Imaged]) -> tuple[Tensor, list[tuple[str, ...]]]:
    """Images (N, 3, 128, 128) uint8, and the captions of each."""
    pictures, captions = zip(*items, strict=True)
    return torch.stack(pictures), list(captions)


class Latents:
    """Latents of web scenes on the disk, each computed once.

    ``FILE.npy`` is (scenes, 4, 32, 32) float16, memory-mapped, already times the scaling factor;
    ``FILE.json`` has what it was made from and the captions so far.

    Args:
        file: without ending.
        vae: in eval mode.
        scenes: how many; seed of them.
        workers: processes that draw.

    Raises:
        ConfigError: another autoencoder or number of scenes is in the file.
    """

    def __init__(
        self, file: Path, vae: AutoencoderKL, scenes: int, seed: int, workers: int = 0
    ) -> None:
        made_from = {"vae": digest(vae), "scenes": scenes, "seed": seed}
        array, notes = file.with_suffix(".npy"), file.with_suffix(".json")
        shape = (scenes, 4, SIZE // STRIDE, SIZE // STRIDE)
        if notes.is_file():
            known = read_json(notes, ConfigError)
            found = known.get("made_from") if isinstance(known, dict) else None
            if found != made_from or not isinstance(known.get("captions"), list):
                raise ConfigError(
                    f"{notes} is of another autoencoder or other scenes ({found}, not "
                    f"{made_from}), or damaged; remove it to have the latents computed anew"
                )
        else:
            known = {"made_from": made_from, "captions": []}
            np.lib.format.open_memmap(array, "w+", np.float16, shape).flush()
        latents = np.lib.format.open_memmap(array, "r+")
        self.captions: list[list[str]] = known["captions"]
        if len(self.captions) < scenes:
            self._fill(latents, vae, seed, workers, known, notes)
        self.latents = np.lib.format.open_memmap(array, "r")

    def _fill(
        self,
        latents: np.ndarray,
        vae: AutoencoderKL,
        seed: int,
        workers: int,
        known: dict[str, Any],
        notes: Path,
    ) -> None:
        start, size = len(self.captions), 32
        rows = range(start, len(latents))
        data = DataLoader(
            _Scenes(len(latents), seed), size, sampler=rows, num_workers=workers,
            collate_fn=_collate,
        )  # fmt: skip
        for count, (pictures, captions) in enumerate(track(data, "latents"), 1):
            with torch.no_grad():
                inputs = to_input(pictures).to(vae.device)
                latent = vae.encode(inputs).latent_dist.mean.float() * vae.config.scaling_factor
            first = len(self.captions)
            latents[first : first + len(pictures)] = latent.cpu().numpy()
            self.captions += [list(one) for one in captions]
            if count % 64 == 0 or len(self.captions) == len(latents):
                latents.flush()  # before the note that says they are there
                write_json(notes, known)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """Latents (count, 4, 32, 32) float32 and a caption of each, at random."""
        rows = torch.randint(len(self.latents), (count,), generator=generator).tolist()
        which = torch.randint(10**6, (count,), generator=generator).tolist()
        texts = [
            self.captions[r][w % len(self.captions[r])] for r, w in zip(rows, which, strict=True)
        ]
        return torch.from_numpy(self.latents[np.array(rows)].astype(np.float32)), texts


def digest(module: nn.Module) -> str:
    """Tells weights apart."""
    found = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        found.update(key.encode() + value.detach().float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


# --- UNet and text encoder ----------------------------------------------------------------------


class TextToLatent(nn.Module):
    """A UNet and the text encoder that is trained with it."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(**UNET)
        self.text_encoder = CLIPTextModel(CLIPTextConfig(**TEXT))
        self.tokenizer = tokenizer()
        alphas_cumprod = DDIMScheduler(**SCHEDULE).alphas_cumprod
        self.register_buffer("alphas_cumprod", alphas_cumprod, persistent=False)

    def context(self, texts: Sequence[str]) -> Tensor:
        """What the UNet is told, (N, 32, 128)."""
        tokens = self.tokenizer(texts).to(self.alphas_cumprod.device)
        return self.text_encoder(tokens).last_hidden_state

    def loss(self, latents: Tensor, texts: Sequence[str], steps: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error of the noise that is found in noisy latents.

        Args:
            latents: (N, 4, 32, 32).
            texts: N captions, some of them empty.
            steps: (N,) time steps.
            noise: normal, as ``latents``.
        """
        alphas_cumprod = self.alphas_cumprod[steps].view(-1, 1, 1, 1)
        noisy = alphas_cumprod.sqrt() * latents + (1 - alphas_cumprod).sqrt() * noise
        found = self.unet(noisy, steps, self.context(texts)).sample
        return F.mse_loss(found.float(), noise)

    @torch.no_grad()
    def sample(self, texts: Sequence[str], noise: Tensor) -> Tensor:
        """Latents of texts from noise (N, 4, 32, 32), by DDIM with guidance away from no text."""
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
    """Losses of the steps of a training.

    Args:
        model: what is trained.
        latents: its data.
        batch_size, seed: of every step.
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
    """Error on held-out scenes, and a sheet of samples.

    Args:
        vae: in eval mode.
        scenes: how many.
        sheet: file of the image.
    """

    def __init__(self, vae: AutoencoderKL, scenes: int, sheet: Path) -> None:
        self.vae, self.sheet = vae, sheet
        pictures, self.texts = held_out(scenes)
        with torch.no_grad():
            parts = [vae.encode(p.to(vae.device)) for p in to_input(pictures).split(16)]
        self.latents = torch.cat([p.latent_dist.mean for p in parts]) * vae.config.scaling_factor

    @torch.no_grad()
    def __call__(self, model: TextToLatent) -> dict[str, float]:
        """Mean losses.

        ``val``: with captions; ``val_unconditional``: without; ``val_early``: with, at steps < 250.
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
        """Sample ``PROMPTS``, always from the same noise."""
        edge = SIZE // STRIDE
        noise = torch.randn(len(PROMPTS), 4, edge, edge, generator=random_of(_HELD_OUT, 1))
        latents = model.sample(PROMPTS, noise.to(self.latents.device))
        with torch.no_grad():
            made = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        write_sheet(self.sheet, list(made.float().cpu()), PROMPTS)


# --- images and files -------------------------------------------------------------------------


def held_out(count: int) -> tuple[Tensor, list[str]]:
    """Scenes that no training here sees: images (N, 3, 128, 128) uint8, and a caption of each."""
    made = [scene((_HELD_OUT, i), "val") for i in range(count)]
    return torch.stack([_tensor(one.image) for one in made]), [one.captions[0] for one in made]


def to_input(pictures: Tensor) -> Tensor:
    """uint8 to [-1, 1] float32."""
    return pictures.float() / 127.5 - 1


def write_sheet(path: Path, pictures: Sequence[Tensor], titles: Sequence[str]) -> None:
    """Images (3, H, W) in [-1, 1] side by side, with titles, as PNG."""
    columns = min(4, len(pictures))
    rows = -(-len(pictures) // columns)
    height = 2.4 * pictures[0].shape[1] / pictures[0].shape[2]
    figure = Figure(figsize=(2.4 * columns, (height + 0.3) * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, picture, title in zip(axes, pictures, titles, strict=False):
        axis.imshow((picture.clamp(-1, 1).permute(1, 2, 0).numpy() + 1) / 2)
        axis.set_title(title, fontsize=7)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def export(folder: Path, vae: AutoencoderKL, model: TextToLatent) -> None:
    """Write diffusers' folder of a model, float16: ``DiffusionBackbone(folder, folder)``.

    Raises:
        DatasetError: there is a folder of that name that this function did not write.
    """
    claim(folder.parent, [folder])
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    disable_progress_bar()
    (temporary / "tokenizer").mkdir(parents=True)
    tokenizer().save(temporary / "tokenizer" / WORDS_FILE)
    DDIMScheduler(**SCHEDULE).save_pretrained(temporary / "scheduler")
    # fresh ones: half precision is for the files alone
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
