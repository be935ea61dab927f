"""Read the required weights of a diffusion model.

There are three kinds of sources. The weights always get diffusers' key names.

* a hub id, ``CompVis/stable-diffusion-v1-3``: downloaded once by ``huggingface_hub``;
* a local diffusers folder with ``unet/``, ``vae/``, ``text_encoder/``;
* an original file (``sd-v1-3.ckpt`` or ``.safetensors``, CompVis key names), without any network
  access.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from odise_mm.checkpoints.hub import locate
from odise_mm.checkpoints.safe_loading import differences, load_state_dict
from odise_mm.checkpoints.weight_folders import download_weights, read_weights
from odise_mm.errors import CheckpointError
from odise_mm.models.backbones.diffusion.presets import LatentArch
from odise_mm.utils.pages import to_float32

StateDict = dict[str, Tensor]

# Key prefixes in original files of Stable Diffusion and LDM, and of SDXL. Other keys (EMA copies,
# schedule buffers, optimizer, the VAE's GAN loss) are not needed.
_ORIGINAL_PREFIXES = {
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.",),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0."),
    "text_encoder_2": ("conditioner.embedders.1.",),
    "class_embedding": ("cond_stage_model.",),
}
# Prefixes of the file names of each part in a diffusers folder.
_STEMS = {
    "unet": ("diffusion_pytorch_model", "pytorch_model"),
    "transformer": ("diffusion_pytorch_model",),
    "vae": ("diffusion_pytorch_model", "pytorch_model"),
    "text_encoder": ("model", "pytorch_model"),
    "text_encoder_2": ("model", "pytorch_model"),
    "text_encoder_3": ("model", "pytorch_model"),
}
# T5's token embeddings are one tensor with two names.
_T5_TABLES = ("shared.weight", "encoder.embed_tokens.weight")


class DiffusionWeights:
    """Weights of a latent diffusion model.

    Args:
        source: hub id, folder or file, see the docstring of the module.
        arch: the architecture that the weights belong to.
        parts: the parts to be read. Others are neither required nor downloaded.

    Raises:
        CheckpointError: no usable weights at ``source``. The message lists what was expected.
    """

    def __init__(self, source: str, arch: LatentArch, parts: Sequence[str]) -> None:
        self.source = str(source)
        self.arch = arch
        self.parts = tuple(parts)
        folders = ", ".join(f"{part}/" for part in self.parts)
        path = locate(self.source, folders, self._download, arch.origin)
        self._file = self._folder = self._original = None
        if path.is_dir():
            self._folder = path
            self._check_folder()
        elif self.parts == ("unet",):  # may have diffusers' key names: decided in fill()
            self._file = path
        elif "transformer" in self.parts:
            raise CheckpointError(
                f"{path} is a file, but the weights of diffusion transformers are read from "
                f"diffusers folders: set `weights` to a hub id or a folder with {folders}"
            )
        else:
            self._original = self._read_original(path)

    def fill(self, module: nn.Module, part: str, unused: frozenset[str]) -> None:
        """Load one part into a module on the meta device. Only the module's tensors are read.

        Args:
            module: a (pruned) UNet, transformer or first stage, changed in place.
            part: ``"unet"``, ``"transformer"`` or ``"vae"``.
            unused: keys of the pruned layers, which are ignored.

        Raises:
            CheckpointError: keys are missing, unexpected or of another shape.
        """
        wanted = module.state_dict()
        known = unused.union(wanted)
        state = self._read(part, known.__contains__, keep=lambda key: key not in unused)
        wrong = differences(state, wanted, unused)
        if wrong:
            raise CheckpointError(
                f"{self.source}: the {part} weights do not match the architecture in the config: "
                f"{wrong}. Set `arch` to the architecture of these weights."
            )
        floats = {key: to_float32(state[key]) for key in wanted}
        module.load_state_dict(floats, assign=True)

    def text_encoder(self, part: str = "text_encoder") -> nn.Module:
        """Build and load a frozen text encoder, on the CPU in float32.

        Raises:
            CheckpointError: the weights cannot be read or belong to another architecture.
        """
        encoder = build_text_encoder(self.arch, part, "meta")
        names = {key.removeprefix("text_model.") for key in encoder.state_dict()}
        state = self._read(
            part, lambda key: key.removeprefix("text_model.") in names, encoder=encoder
        )
        if not hasattr(encoder, "text_projection"):
            # applied after the last hidden state, which is all that this encoder returns
            state.pop("text_projection.weight", None)
        wanted = encoder.state_dict()
        # Old files contain position_ids, 0 to 76, which the module creates itself.
        state = {
            _prefixed_as(wanted, key): value
            for key, value in state.items()
            if not key.endswith("embeddings.position_ids")
        }
        for one, other in (_T5_TABLES, _T5_TABLES[::-1]):  # files hold one or both
            if one in wanted and one not in state and other in state:
                state[one] = state[other]
        wrong = differences(state, wanted)
        if wrong:
            raise CheckpointError(
                f"{self.source}: the weights of the text encoder ({part}) do not match the "
                f"architecture in the config: {wrong}"
            )
        floats = {key: to_float32(value) for key, value in state.items()}
        encoder.load_state_dict(floats, assign=True)
        _number_positions(encoder)
        return encoder.requires_grad_(False)

    def class_embedding(self) -> Tensor:
        """Return the class embeddings of a class-conditional model.

        Returns:
            (``arch.classes``, context width) float32.

        Raises:
            CheckpointError: the weights belong to another architecture.
        """
        key = "cond_stage_model.embedding.weight"
        wanted = {key: torch.empty(self.arch.classes, self.arch.unet["cross_attention_dim"])}
        prefix = _ORIGINAL_PREFIXES["class_embedding"]
        state = {k: v for k, v in self._original.items() if k.startswith(prefix)}
        wrong = differences(state, wanted)
        if wrong:
            raise CheckpointError(
                f"{self.source}: the class embeddings do not match the architecture in the config: "
                f"{wrong}. Set `arch` to the architecture of these weights."
            )
        return state[key].float()

    def _read(
        self,
        part: str,
        fits: Callable[[str], bool],
        keep: Callable[[str], bool] | None = None,
        encoder: nn.Module | None = None,
    ) -> StateDict:
        if self._folder is not None:
            what = f"weights of the {part}"
            state = read_weights(self._folder / part, _STEMS[part], what, keep, fits)
            return _rename_old_attention(state) if part == "vae" else state
        if self._original is None:  # a file that is read for its UNet only
            return self._read_unet(fits)
        return self._convert(part, self._original, encoder)

    def _read_unet(self, fits: Callable[[str], bool]) -> StateDict:
        """Read the UNet of a file with original key names, or with diffusers' names."""
        prefixes = _ORIGINAL_PREFIXES["unet"]
        state = load_state_dict(self._file, fits=lambda key: key.startswith(prefixes) or fits(key))
        original = {key: state[key] for key in state if key.startswith(prefixes)}
        return self._convert("unet", original) if original else state

    def _read_original(self, path: Path) -> StateDict:
        prefixes = {part: _ORIGINAL_PREFIXES[part] for part in self.parts}
        wanted = tuple(prefix for some in prefixes.values() for prefix in some)

        def fits(key: str) -> bool:
            return key.startswith(wanted)

        state = load_state_dict(path, keep=fits, fits=fits)
        for part, some in prefixes.items():
            if not any(key.startswith(some) for key in state):
                raise CheckpointError(
                    f"{path} is not an original Stable Diffusion checkpoint, nor one of the "
                    f"architecture in the config: no key begins with {' or '.join(some)} ({part}). "
                    "Set `weights` to a file such as sd-v1-3.ckpt, a diffusers folder or a hub id, "
                    "and `arch` to its architecture."
                )
        return state

    def _convert(
        self, part: str, original_state: StateDict, encoder: nn.Module | None = None
    ) -> StateDict:
        from diffusers.loaders import single_file_utils as original

        prefixes = _ORIGINAL_PREFIXES[part]
        state = {key: value for key, value in original_state.items() if key.startswith(prefixes)}
        if part == "unet":
            # diffusers' converter requires layers_per_block
            config = {"layers_per_block": 2, **self.arch.unet}
            return original.convert_ldm_unet_checkpoint(state, config)
        if part == "vae":
            converted = original.convert_ldm_vae_checkpoint(state, self.arch.vae)
            # the converter is made for first stages without quantization and drops the codes
            codes = "quantize.embedding.weight"
            if f"{prefixes[0]}{codes}" in state:
                converted[codes] = state[f"{prefixes[0]}{codes}"]
            return converted
        for prefix in prefixes:
            # OpenCLIP's key names: Stable Diffusion v2, and the second text encoder of SDXL
            if any(key.startswith(f"{prefix}model.") for key in state):
                return original.convert_open_clip_checkpoint(encoder, state, f"{prefix}model.")
        return original.convert_ldm_clip_checkpoint(state)

    def _download(self) -> Path:
        self._check_parts()
        return download_weights(self.source, {part: _STEMS[part] for part in self.parts})

    def _check_parts(self) -> None:
        if any(part not in _STEMS for part in self.parts):
            raise CheckpointError(
                f"{self.source}: class-conditional models can only be read from an original file, "
                "such as model.ckpt of CompVis' cin256-v2, as diffusers has no format for them."
            )

    def _check_folder(self) -> None:
        self._check_parts()
        for part in self.parts:
            if not (self._folder / part).is_dir():
                raise CheckpointError(
                    f"{self._folder} is not a diffusers folder: it contains no {part}/ "
                    f"(expected {', '.join(f'{p}/' for p in self.parts)})."
                )


def build_text_encoder(arch: LatentArch, part: str, device: str = "cpu") -> nn.Module:
    """Build a frozen text encoder.

    Args:
        arch: the architecture.
        part: name of the text encoder, see :meth:`LatentArch.text_encoder`.
        device: "cpu" for random weights; "meta" for shapes without memory, to load weights into.
    """
    import transformers

    name, fields = arch.text_encoder(part)
    cls = getattr(transformers, name)
    with torch.device(device):
        return cls(cls.config_class(**fields)).eval().requires_grad_(False)


def _number_positions(encoder: nn.Module) -> None:
    """Make CLIP's ``position_ids``, 0 to 76, which files need not have, on the CPU."""
    for module in encoder.modules():
        ids = getattr(module, "position_ids", None)
        if isinstance(ids, Tensor) and ids.is_meta:
            module.position_ids = torch.arange(ids.shape[-1]).expand(ids.shape)


def _prefixed_as(wanted: Collection[str], key: str) -> str:
    """Add or remove the prefix ``text_model.`` of a key to match the keys of the module.

    transformers 5.6 dropped the prefix from ``CLIPTextModel``. Files exist with and without it.
    """
    prefix = "text_model."
    other = key.removeprefix(prefix) if key.startswith(prefix) else prefix + key
    return other if key not in wanted and other in wanted else key


def _rename_old_attention(state: StateDict) -> StateDict:
    """Rename the VAE's attention layers in diffusers folders from before 2023."""
    new = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    renamed = {}
    for key, value in state.items():
        head, _, layer = key.rpartition(".")
        stem, _, last = head.rpartition(".")
        if "attentions" in key and last in new:
            key = f"{stem}.{new[last]}.{layer}"
        renamed[key] = value
    return renamed
