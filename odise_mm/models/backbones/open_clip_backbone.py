"""Features of a CLIP's image tower, by open_clip: ViTs, ConvNeXts and ResNets.

ODISE (arXiv 2303.04803, section 4.3) compares diffusion features with those of CLIP's image
encoders, ViT-L and ViT-H.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib.metadata import version
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from odise_mm.checkpoints.safe_loading import differences
from odise_mm.errors import CheckpointError
from odise_mm.models.backbones.base import Backbone
from odise_mm.models.backbones.timm_backbone import (
    cast_buffers,
    check_image_size,
    choose_levels,
    fit_tiles,
    level_info,
    prune,
    register_normalization,
)
from odise_mm.models.backbones.timm_weights import WithoutDrawing, find_model
from odise_mm.models.clip.frozen_clip import FrozenCLIP
from odise_mm.models.clip.sources import CLIPSource, find_clip, read_clip
from odise_mm.models.frozen import same_random_weights
from odise_mm.registry import MODELS

PREFIX = "visual."  # of the image tower's weights in open_clip's and OpenAI's files


@MODELS.register_module()
class OpenCLIPBackbone(Backbone):
    """Raw feature maps of image tiles from the frozen image tower of a CLIP.

    A map is what its block or stage gives to the next one, without the tower's last norm, as in
    :class:`~odise_mm.models.backbones.timm_backbone.TimmBackbone`; :meth:`embed` has what follows.

    Sizes. ViTs get the tile itself, resized (bicubic, with antialias) up to the next multiple of
    their patch, with position embeddings interpolated; ConvNeXts and ResNets likewise, up to a
    multiple of 32. Other towers of timm's, and all where ``image_size`` is given, get every tile
    resized to the size that they were trained on, or to ``image_size``.

    Args:
        model: name of an open_clip architecture, or the content of such a config (``embed_dim``,
            ``vision_cfg``, ``quick_gelu``). Only the image tower is built. None uses the tower of
            ``clip``, which then exists once.
        weights: open_clip's tag, or a local file: see
            :class:`~odise_mm.models.FrozenCLIP`.
            Only the tower's part of it is kept. None leaves random weights, the same every time.
        clip: the model's CLIP; not used where ``model`` is named.
        out_indices: blocks (ViT) or levels (pyramids) to take, from the front to the back; negative
            ones count from the end. By default those at 1/4, 1/2, 3/4 and the whole depth of a ViT,
            and of a pyramid the last level of each stride from 4 to 32.
        image_size: edge of the square that every tile is resized to, in pixels.
        mean, std: of the images that the weights were trained on, see
            :class:`~odise_mm.models.FrozenCLIP`; not taken without ``model``.

    Raises:
        ValueError: no such architecture or tag, an index that does not exist, neither ``model``
            nor ``clip``, ``weights`` without ``model``.
        CheckpointError: weights missing, out of reach or of another
            model.
    """

    @classmethod
    def fetch_weights(
        cls, model: str | dict | None = None, weights: str | None = None, **settings: Any
    ) -> None:
        """See :meth:`FrozenModule.fetch_weights`."""
        if model is not None:
            find_clip(model, weights, settings.get("mean"), settings.get("std"))

    def __init__(
        self,
        model: str | dict | None = None,
        weights: str | None = None,
        clip: FrozenCLIP | None = None,
        out_indices: Sequence[int] | None = None,
        image_size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        check_image_size(image_size)
        # In a tuple, so that it stays the child of its owner alone.
        self._shared_clip = (clip,) if model is None and clip is not None else ()
        state = None
        if model is not None:
            name = f"CLIP {model if isinstance(model, str) else 'of the config'}"
            source = find_clip(model, weights, mean, std)
            self.own_tower, state = _build_tower(source)
            mean, std = source.mean, source.std
        elif clip is None:
            raise ValueError(
                "OpenCLIPBackbone needs a `model` of open_clip's, or a segmentor with a `clip` "
                "whose image tower it can use"
            )
        elif weights is not None or mean is not None or std is not None:
            name = "weights" if weights is not None else "mean" if mean is not None else "std"
            value = weights if weights is not None else mean if mean is not None else std
            raise ValueError(
                f"{name}={value!r} without a model: OpenCLIPBackbone then uses the segmentor's "
                f"clip, which has its own {name}; name the `model` too, or drop `{name}`"
            )
        else:
            name = f"CLIP {clip.short_name}"
            mean, std = clip.mean.flatten().tolist(), clip.std.flatten().tolist()
        tower = self.tower
        info = _tower_info(tower, name)
        self.out_indices = choose_levels(info, out_indices, name)
        self.channels = tuple(info[i]["num_chs"] for i in self.out_indices)
        self.strides = tuple(info[i]["reduction"] for i in self.out_indices)
        self.patch_size = min(level["reduction"] for level in info)
        self.divisor = max(level["reduction"] for level in info[: self.out_indices[-1] + 1])
        self._whole = self.out_indices[-1] == len(info) - 1
        if not self._shared_clip:
            known = frozenset(tower.state_dict())
            _prune(tower, self._taken, self._whole)
            if state is not None:
                _fill(tower, state, known, name, source.path)
        self.image_size = self._settle_size(image_size)
        register_normalization(self, mean, std)
        self.freeze()

    def _settle_size(self, image_size: int | None) -> int | None:
        """The fixed edge of the tiles, None for any; a trunk made for one size is made for it."""
        tower = self.tower
        if image_size is not None and image_size % self.patch_size:
            raise ValueError(
                f"image_size={image_size} is no multiple of the {self.patch_size} pixels of a patch"
            )
        trunk = getattr(tower, "trunk", None)
        if trunk is None or not trunk.pretrained_cfg.get("fixed_input_size"):
            return image_size
        if image_size not in (None, tower.image_size[0]):
            if self._shared_clip:
                raise ValueError(
                    f"image_size={image_size}, but the segmentor's clip is made for "
                    f"{tower.image_size[0]} pixels and is not changed here: name the `model` too, "
                    "or drop image_size"
                )
            if not hasattr(trunk, "set_input_size"):  # open_clip would leave it out in silence
                raise ValueError(
                    f"image_size={image_size}, but timm {version('timm')} cannot change the size "
                    f"of its {type(trunk).__name__}: leave image_size out, or try a newer timm "
                    "(BEiT's changes from 1.0.31 on)"
                )
            tower.set_input_size(image_size)
        return tower.image_size[0]

    @property
    def tower(self) -> nn.Module:
        """open_clip's image tower, the model's own or that of the CLIP it was lent."""
        return self._shared_clip[0].visual if self._shared_clip else self.own_tower

    @property
    def _taken(self) -> list[int]:
        return sorted(set(self.out_indices))

    def cast(self, dtype: torch.dtype) -> None:
        """See :meth:`FrozenModule.cast`; a lent tower is cast by its owner."""
        super().cast(dtype)
        if hasattr(self, "own_tower"):
            cast_buffers(self.own_tower, dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Floating point type of the tower."""
        return next(self.tower.parameters()).dtype

    def own_precision(self) -> AbstractContextManager:
        """See :meth:`FrozenModule.own_precision`."""
        return (
            self._shared_clip[0].own_precision() if self._shared_clip else super().own_precision()
        )

    def forward(self, tiles: Tensor, *condition: Any) -> list[Tensor]:
        """Feature maps of a batch of tiles.

        Args:
            tiles: (N, 3, H, W) in [0, 1], RGB, at least a patch large.
            condition: not looked at.

        Returns:
            One (N, channels[i], h, w) map for every index, h and w those of the resized tile over
            ``strides[i]``.

        Raises:
            ImageError: tiles smaller than a patch.
        """
        with self.own_precision():
            if _is_vit(self.tower):
                maps = self._vit(tiles)[0]
            else:
                maps = self.tower.forward_intermediates(
                    self._prepare(tiles), self._taken, stop_early=True, intermediates_only=True
                )["image_intermediates"]
        return [maps[self._taken.index(i)] for i in self.out_indices]

    def embed(self, tiles: Tensor) -> Tensor:
        """The last feature map, pooled and projected as the tower does it, class token and all.

        At the size that the tower was trained on this is open_clip's ``encode_image``.

        Args:
            tiles: (N, 3, H, W) in [0, 1], RGB.

        Returns:
            (N, embed_dim) float32, not L2-normalized.

        Raises:
            ValueError: the last block or level is not among ``out_indices``, so that what follows
                it does not exist.
        """
        if not self._whole:
            raise ValueError(
                f"out_indices={self.out_indices} leave out the tower's last block: no embedding"
            )
        tower = self.tower
        with self.own_precision():
            if _is_vit(tower):
                pooled, _ = tower._pool(self._vit(tiles)[1])
                return (pooled @ tower.proj).float()
            return tower(self._prepare(tiles)).float()

    def _prepare(self, tiles: Tensor) -> Tensor:
        """Resized and normalized, in the tower's type."""
        tiles = fit_tiles(tiles, self.patch_size, self.divisor, self.image_size)
        return ((tiles - self.mean) / self.std).to(self.dtype)

    def _vit(self, tiles: Tensor) -> tuple[list[Tensor], Tensor]:
        """Maps of the blocks in use, and the last one's tokens, the class token first, of a ViT.

        open_clip's ViT takes one size only; with interpolated positions it takes any.
        """
        tower = self.tower
        patches = tower.conv1(self._prepare(tiles))
        size = patches.shape[-2:]
        tokens = patches.flatten(2).transpose(1, 2)
        first = tower.class_embedding.to(tokens).expand(len(tokens), 1, -1)
        positions = tower.positional_embedding
        if tuple(size) != tuple(tower.grid_size):
            positions = resample_abs_pos_embed(
                positions[None].float(), list(size), list(tower.grid_size), num_prefix_tokens=1
            )
        tokens = torch.cat([first, tokens], dim=1) + positions.to(tokens)
        tokens, taps = tower.transformer.forward_intermediates(
            tower.ln_pre(tokens), indices=self._taken, stop_early=True
        )
        maps = [tap[:, 1:].transpose(1, 2).unflatten(2, size).contiguous() for tap in taps]
        return maps, tokens


def _is_vit(tower: nn.Module) -> bool:
    return hasattr(tower, "transformer")


def _tower_info(tower: nn.Module, name: str) -> list[dict[str, Any]]:
    """Channels and stride of all that can be taken, as timm says it of its models."""
    if _is_vit(tower):
        width = tower.conv1.out_channels
        levels = [(width, tower.patch_size[0])] * len(tower.transformer.resblocks)
    elif hasattr(tower, "trunk"):
        return level_info(tower.trunk, name)
    else:  # CLIP's own ResNet
        stages = (tower.layer1, tower.layer2, tower.layer3, tower.layer4)
        widths = [tower.conv3.out_channels, *(stage[-1].conv3.out_channels for stage in stages)]
        levels = list(zip(widths, (4, 4, 8, 16, 32), strict=True))
    return [{"num_chs": channels, "reduction": stride} for channels, stride in levels]


def _build_tower(source: CLIPSource) -> tuple[nn.Module, dict[str, Tensor] | None]:
    """The image tower alone; its values are undefined where a state to fill it with is returned."""
    from open_clip.model import _build_vision_tower

    trunk = source.config.get("vision_cfg", {}).get("timm_model_name")
    if trunk:
        find_model(trunk, None)  # names the nearest where there is none
    try:
        # never the weights that timm would download for the trunk alone
        vision = {**source.config["vision_cfg"], "timm_model_pretrained": False}
        options = (source.config["embed_dim"], vision, source.config.get("quick_gelu", False))
    except KeyError as error:
        raise ValueError(f"the config of a CLIP has no {error}: see open_clip's configs") from None
    if source.path is None:
        with same_random_weights():
            return _build_vision_tower(*options), None
    with same_random_weights(), WithoutDrawing():  # some tokens are drawn all the same
        tower = _build_vision_tower(*options)
    known = {PREFIX + key for key in tower.state_dict()}
    state = read_clip(source.path, lambda key: key.startswith(PREFIX), known.__contains__)
    return tower, {key.removeprefix(PREFIX): value for key, value in state.items()}


def _prune(tower: nn.Module, indices: Sequence[int], whole: bool) -> None:
    """Remove what lies behind the last tap; the projection stays where the last block does."""
    if whole:
        return
    if _is_vit(tower):
        tower.prune_intermediate_layers(list(indices), prune_norm=True, prune_head=True)
        tower.attn_pool = None
    elif hasattr(tower, "trunk"):
        prune(tower.trunk, indices)
        tower.head = nn.Identity()
    else:
        for level in range(indices[-1] + 1, 5):
            setattr(tower, f"layer{level}", nn.Identity())
        tower.attnpool = nn.Identity()


def _fill(
    tower: nn.Module, state: dict[str, Tensor], known: frozenset[str], name: str, path: str
) -> None:
    wanted = tower.state_dict()
    wrong = differences(state, wanted, known)
    if wrong:
        raise CheckpointError(
            f"{path} holds no weights for the image tower of {name}: {wrong}. Name the "
            "architecture that the file was made for."
        )
    floats = {k: state[k].float() if state[k].is_floating_point() else state[k] for k in wanted}
    tower.load_state_dict(floats, assign=True)
