"""Read Stable Diffusion weights from wherever they lie, and only those that are needed.

Three kinds of source, one result (diffusers' names):

* a hub id, ``CompVis/stable-diffusion-v1-3``: downloaded once by ``huggingface_hub``;
* a local diffusers folder with ``unet/``, ``vae/``, ``text_encoder/``;
* one original file (``sd-v1-3.ckpt`` or ``.safetensors``, CompVis key names): no network access.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from odise_mm.models.backbones.diffusion_arch import DiffusionArch
from odise_mm.utils.checkpoint import CheckpointError, differences, load_state_dict

StateDict = dict[str, Tensor]

# Prefixes in an original file. The rest (EMA copies, schedule buffers, optimizer, VAE's GAN loss)
# serves training or is computed from the config.
_ORIGINAL_PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.",
}
_WEIGHT_NAMES = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}


class DiffusionWeights:
    """The weights of one latent diffusion model.

    Args:
        source: hub id, folder or file, see the module's docstring.
        arch: the architecture that they are meant for.

    Raises:
        CheckpointError: nothing usable is at ``source``; the message says what was looked for.
    """

    def __init__(self, source: str, arch: DiffusionArch) -> None:
        self.source = str(source)
        self.arch = arch
        path = Path(source).expanduser()
        if path.is_file():
            self._original = self._read_original(path)
            self._folder = None
        else:
            self._original = None
            self._folder = path if path.is_dir() else self._download()
            self._check_folder()

    def fill(self, module: nn.Module, part: str, unused: frozenset[str]) -> None:
        """Load one part into a module built on the meta device; only its own tensors are read.

        Args:
            module: a (pruned) ``UNet2DConditionModel`` or ``AutoencoderKL``.
            part: ``"unet"`` or ``"vae"``.
            unused: keys of the layers that were pruned away; any other key without a home, and any
                home without a key, is an error.
        """
        wanted = module.state_dict()
        state = self._read(part, keep=lambda key: key not in unused)
        wrong = differences(state, wanted, unused)
        if wrong:
            raise CheckpointError(
                f"{self.source}: the {part} weights are not those of the architecture in the "
                f"config: {wrong}. Set `arch` to the one these weights belong to."
            )
        floats = {key: state[key].to(torch.float32) for key in wanted}
        module.load_state_dict(floats, assign=True)

    def text_encoder(self) -> nn.Module:
        """The text encoder, a ``CLIPTextModel`` on the CPU in float32."""
        from transformers import CLIPTextConfig, CLIPTextModel

        with torch.device("cpu"):
            encoder = CLIPTextModel(CLIPTextConfig(**self.arch.text)).eval()
        state = self._read("text_encoder", keep=lambda _: True, encoder=encoder)
        state = {key.removeprefix("text_model."): value for key, value in state.items()}
        # An integer buffer of old files, a counter 0..76 that the module makes itself; and the
        # projection behind the last hidden state.
        for key in ("embeddings.position_ids", "text_projection.weight"):
            state.pop(key, None)
        wrong = differences(state, encoder.state_dict())
        if wrong:
            raise CheckpointError(
                f"{self.source}: the text encoder's weights are not those of the architecture in "
                f"the config: {wrong}"
            )
        encoder.load_state_dict({key: value.float() for key, value in state.items()})
        return encoder

    def _read(
        self, part: str, keep: Callable[[str], bool], encoder: nn.Module | None = None
    ) -> StateDict:
        if self._folder is not None:
            return self._read_folder(part, keep)
        return self._convert(part, encoder)

    def _read_original(self, path: Path) -> StateDict:
        prefixes = tuple(_ORIGINAL_PREFIXES.values())
        state = load_state_dict(path, keep=lambda key: key.startswith(prefixes))
        for part, prefix in _ORIGINAL_PREFIXES.items():
            if not any(key.startswith(prefix) for key in state):
                raise CheckpointError(
                    f"{path} is not an original Stable Diffusion checkpoint: no key begins with "
                    f"{prefix} ({part}). Name a file such as sd-v1-3.ckpt, a diffusers folder or "
                    "a hub id."
                )
        return state

    def _convert(self, part: str, encoder: nn.Module | None) -> StateDict:
        from diffusers.loaders import single_file_utils as original

        prefix = _ORIGINAL_PREFIXES[part]
        state = {key: value for key, value in self._original.items() if key.startswith(prefix)}
        if part == "unet":
            # diffusers' converter looks this up and has no default for it
            return original.convert_ldm_unet_checkpoint(state, {"layers_per_block": 2})
        if part == "vae":
            return original.convert_ldm_vae_checkpoint(state, self.arch.vae)
        if any(key.startswith("cond_stage_model.model.") for key in state):  # SD v2: OpenCLIP names
            return original.convert_open_clip_checkpoint(encoder, state)
        return original.convert_ldm_clip_checkpoint(state)

    def _download(self) -> Path:
        if self.source.count("/") != 1 or self.source.startswith((".", "/", "~")):
            raise CheckpointError(
                f"{self.source}: no such file or folder. Name an original checkpoint "
                "(sd-v1-3.ckpt), a diffusers folder or a hub id such as "
                "CompVis/stable-diffusion-v1-3."
            )
        try:
            folder = self._snapshot(list(_WEIGHT_NAMES), "safetensors")
            older = [p for p in _WEIGHT_NAMES if not any((folder / p).glob("*.safetensors"))]
            return self._snapshot(older, "bin") if older else folder
        except Exception as error:  # the hub client raises a dozen kinds, all meaning the same here
            raise CheckpointError(
                f"{self.source}: neither a local path nor to be had from the hub "
                f"({type(error).__name__}: {str(error).splitlines()[0]}). Check the name, the "
                "network and `huggingface-cli login`, or name a local file."
            ) from error

    def _snapshot(self, parts: list[str], ending: str) -> Path:
        from huggingface_hub import snapshot_download

        patterns = []
        for part in parts:
            # Neither half precision nor the weights before averaging (non_ema): GBs for nothing.
            for name in _names(part, ending):
                file = f"{part}/{name}.{ending}"
                patterns += [file, f"{file}.index.json", f"{part}/{name}-*-of-*.{ending}"]
        return Path(snapshot_download(self.source, allow_patterns=patterns))

    def _check_folder(self) -> None:
        for part in _WEIGHT_NAMES:
            if not (self._folder / part).is_dir():
                raise CheckpointError(
                    f"{self._folder} is not a diffusers folder: it has no {part}/ in it "
                    "(expected unet/, vae/ and text_encoder/)."
                )

    def _read_folder(self, part: str, keep: Callable[[str], bool]) -> StateDict:
        folder = self._folder / part
        files = [f"{name}.safetensors" for name in _names(part, "safetensors")]
        files += [f"{_WEIGHT_NAMES[part]}.fp16.safetensors"]
        files += [f"{name}.bin" for name in _names(part, "bin")]
        for file in files:
            index = folder / f"{file}.index.json"
            if index.is_file():
                shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            elif (folder / file).is_file():
                shards = [file]
            else:
                continue
            state: StateDict = {}
            for shard in shards:
                state.update(load_state_dict(folder / shard, keep=keep))
            return _rename_old_attention(state) if part == "vae" else state
        raise CheckpointError(f"{folder}: none of {', '.join(files)} is in it.")


def _names(part: str, ending: str) -> list[str]:
    """Names that a part's file may have, without the ending."""
    return [_WEIGHT_NAMES[part]] + (["pytorch_model"] if ending == "bin" else [])


def _rename_old_attention(state: StateDict) -> StateDict:
    """Diffusers folders from before 2023 name the VAE's attention layers otherwise."""
    new = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    renamed = {}
    for key, value in state.items():
        head, _, layer = key.rpartition(".")
        stem, _, last = head.rpartition(".")
        if "attentions" in key and last in new:
            key = f"{stem}.{new[last]}.{layer}"
        renamed[key] = value
    return renamed
