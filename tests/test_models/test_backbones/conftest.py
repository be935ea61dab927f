"""The complete tiny diffusion model in diffusers, with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.loaders import single_file_utils as original
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize
from transformers import CLIPTextConfig, CLIPTextModel

from odise_mm.models.backbones.diffusion.presets import ARCHITECTURES, DiffusionArch
from tests.support import golden


class Diffusion(NamedTuple):
    """Complete latent diffusion model without pruning."""

    arch: DiffusionArch
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text: CLIPTextModel

    @classmethod
    def random(cls, arch: DiffusionArch, seed: int = 0) -> Diffusion:
        torch.manual_seed(seed)
        return cls(
            arch,
            UNet2DConditionModel(**arch.unet).eval(),
            AutoencoderKL(**arch.vae).eval(),
            CLIPTextModel(CLIPTextConfig(**arch.text)).eval(),
        )

    def save(self, folder: Path, **how: object) -> Path:
        self.unet.save_pretrained(folder / "unet", **how)
        self.vae.save_pretrained(folder / "vae", **how)
        self.text.save_pretrained(folder / "text_encoder")
        return folder

    def features(
        self,
        tiles: Tensor,
        context: Tensor,
        steps: Sequence[int] = (0,),
        time: Tensor | None = None,
        seed: int = 42,
    ) -> dict[str, list[Tensor]]:
        """Record the inputs of all residual blocks with hooks while the whole model runs.

        The UNet's inputs for several steps are concatenated along channels. The result also
        contains ``latent`` and ``noisy``.
        """
        blocks = {
            "vae_encoder": [r for b in self.vae.encoder.down_blocks for r in b.resnets],
            "unet": [r for b in self.unet.up_blocks for r in b.resnets],
            "vae_decoder": [r for b in self.vae.decoder.up_blocks for r in b.resnets],
        }
        seen: dict[str, list[Tensor]] = {name: [] for name in blocks}
        hooks = [
            block.register_forward_pre_hook(
                lambda _, inputs, name=name: seen[name].append(inputs[0])
            )
            for name, part in blocks.items()
            for block in part
        ]
        with torch.no_grad():
            latent = self.vae.encode(tiles * 2 - 1).latent_dist.mode() * self.arch.scaling_factor
            self.vae.decode(latent / self.arch.scaling_factor)
        noise = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(seed))
        noise = resize(noise, latent.shape[-2:], InterpolationMode.BICUBIC, antialias=False)
        scheduler = DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear")
        noisy = []
        for index, step in enumerate(steps):
            at = torch.tensor([max(step, 0)] * len(tiles))
            noised = scheduler.add_noise(latent, noise.expand_as(latent), at)
            noisy.append(latent if step < 0 else noised)
            hook = self.unet.time_embedding.register_forward_hook(
                lambda _, __, output, index=index: (
                    output if time is None else output + time[:, index]
                )
            )
            self.unet(noisy[-1], at, encoder_hidden_states=context)
            hook.remove()
        for hook in hooks:
            hook.remove()
        count = len(blocks["unet"])
        seen["unet"] = [torch.cat(seen["unet"][i::count], 1) for i in range(count)]
        return {**seen, "latent": [latent], "noisy": noisy}


def text_state(text: CLIPTextModel) -> dict[str, Tensor]:
    """Return a text encoder's weights without the key prefix of old transformers versions."""
    return {key.removeprefix("text_model."): value for key, value in text.state_dict().items()}


@pytest.fixture(scope="session")
def full() -> Diffusion:
    """Tiny Stable Diffusion v1 with random weights, converted by diffusers."""
    model = Diffusion.random(ARCHITECTURES["tiny"])
    state = golden.state_dict("tiny", "sd_v1")

    def part(prefix: str) -> dict[str, Tensor]:
        return {key: value for key, value in state.items() if key.startswith(prefix)}

    model.unet.load_state_dict(
        original.convert_ldm_unet_checkpoint(
            part("model.diffusion_model."), {"layers_per_block": 2}
        )
    )
    model.vae.load_state_dict(
        original.convert_ldm_vae_checkpoint(part("first_stage_model."), model.arch.vae)
    )
    prefix = "cond_stage_model.transformer.text_model."
    inner = getattr(model.text, "text_model", model.text)  # the former in transformers before 5.6
    inner.load_state_dict({key.removeprefix(prefix): value for key, value in part(prefix).items()})
    return model


@pytest.fixture(scope="session")
def folder(full: Diffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of the same model as a diffusers folder."""
    return full.save(tmp_path_factory.mktemp("diffusers"))
