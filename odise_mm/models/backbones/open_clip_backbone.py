"""Features of the image towers of open_clip models: ViTs, ConvNeXts and ResNets.

ODISE (arXiv 2303.04803, section 4.3) compares diffusion features with those of the CLIP image
encoders ViT-L and ViT-H.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib.metadata import version
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from odise_mm.checkpoints.safe_loading import differences
from odise_mm.errors import CheckpointError, ConfigError
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
from odise_mm.utils.settings import check_flag

PREFIX = "visual."  # of the image tower's keys in files of open_clip and OpenAI


@MODELS.register_module()
class OpenCLIPBackbone(Backbone):
    """Raw feature maps of image tiles from the frozen image tower of a CLIP.

    A map is the output of a block or stage, without the tower's last norm, as in
    :class:`~odise_mm.models.backbones.timm_backbone.TimmBackbone`. :meth:`embed` runs the rest of
    the tower.

    ViTs get the tile, resized (bicubic, with antialiasing) up to the next multiple of their patch
    size; position embeddings are interpolated. ConvNeXts and ResNets get it resized up to a
    multiple of 32. For other timm towers, tiles are resized to the size that the tower was trained
    on. If ``image_size`` is set, tiles are always resized to that size.

    With ``trained``, the stem and the stages of the ConvNeXt of the segmentor's CLIP are trained
    with the model, as in OVRCOAT and MAFT+. They belong to the backbone's state dict as
    ``trunk.stem`` and ``trunk.stages``, so checkpoints contain them. The tower's head and the text
    tower stay frozen. In the optimizer, the parameters are named after the CLIP:
    ``clip.model.visual.trunk``.

    Args:
        model: name of an open_clip architecture, or the content of such a config (``embed_dim``,
            ``vision_cfg``, ``quick_gelu``). Only the image tower is built. None: use the tower of
            ``clip``, which then exists only once.
        weights: tag of open_clip or local file, see :class:`~odise_mm.models.FrozenCLIP`. Only the
            weights of the image tower are kept. None: random weights, the same every time.
        clip: the CLIP of the segmentor. Not used if ``model`` is set.
        out_indices: blocks (ViTs) or levels (pyramids) to return, in ascending order. Negative ones
            count from the end. By default, the blocks at 1/4, 1/2, 3/4 and the end of a ViT, or the
            last level of each stride from 4 to 32 of a pyramid.
        image_size: height and width in pixels that all tiles are resized to.
        mean: mean of the training images, see :class:`~odise_mm.models.FrozenCLIP`. Requires
            ``model``.
        std: standard deviation, like ``mean``.
        trained: whether to train the trunk of the segmentor's CLIP, which must be a ConvNeXt.

    Raises:
        ConfigError: ``trained`` with a ``model``, or with a tower that is not a ConvNeXt.
        ValueError: unknown architecture or tag; an index that does not exist; neither ``model`` nor
            ``clip`` is set; ``weights``, ``mean`` or ``std`` without ``model``.
        CheckpointError: the weights are missing, cannot be downloaded or belong to another model.
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
        trained: bool = False,
    ) -> None:
        super().__init__()
        check_image_size(image_size)
        check_flag("trained", trained)
        # In a tuple, so that it is not registered as a submodule: it belongs to the segmentor.
        self._shared_clip = (clip,) if model is None and clip is not None else ()
        state = None
        if model is not None:
            name = f"CLIP {model if isinstance(model, str) else 'of the config'}"
            source = find_clip(model, weights, mean, std)
            self.own_tower, state = _build_tower(source)
            mean, std = source.mean, source.std
        elif clip is None:
            raise ValueError(
                "OpenCLIPBackbone needs a `model` of open_clip, or a segmentor with a `clip` whose "
                "image tower it can use"
            )
        elif weights is not None or mean is not None or std is not None:
            name = "weights" if weights is not None else "mean" if mean is not None else "std"
            value = weights if weights is not None else mean if mean is not None else std
            raise ValueError(
                f"{name}={value!r} without a model: OpenCLIPBackbone then uses the segmentor's "
                f"clip and its {name}; set `model` as well, or remove `{name}`"
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
        self.image_size = self._set_image_size(image_size)
        register_normalization(self, mean, std)
        if trained:
            self.trunk = self._trained_trunk(name)
        else:
            self.freeze()

    def _trained_trunk(self, name: str) -> nn.ModuleDict:
        """Return the trained layers of the shared tower, which belong to the state dict."""
        if not self._shared_clip:
            raise ConfigError(
                f"trained=True trains the image tower of the segmentor's clip, not that of {name}: "
                "remove `model` from the backbone, and set `clip` in the segmentor"
            )
        trunk = getattr(self.tower, "trunk", None)
        if not (hasattr(trunk, "stem") and hasattr(trunk, "stages")):
            raise ConfigError(
                f"trained=True needs a clip with a ConvNeXt, and {name} has "
                f"{type(trunk or self.tower).__name__}: choose one such as convnext_large_d_320, "
                "or remove `trained`"
            )
        layers = nn.ModuleDict({"stem": trunk.stem, "stages": trunk.stages})
        return layers.requires_grad_(True)

    def _set_image_size(self, image_size: int | None) -> int | None:
        """Return the fixed height and width of tiles, or None; resize a timm trunk to it."""
        tower = self.tower
        if image_size is not None and image_size % self.patch_size:
            raise ValueError(
                f"image_size={image_size} must be a multiple of the patch size, "
                f"{self.patch_size} pixels"
            )
        trunk = getattr(tower, "trunk", None)
        if trunk is None or not trunk.pretrained_cfg.get("fixed_input_size"):
            return image_size
        if image_size not in (None, tower.image_size[0]):
            if self._shared_clip:
                raise ValueError(
                    f"image_size={image_size}, but the segmentor's clip has a fixed size of "
                    f"{tower.image_size[0]} pixels, which is not changed here: set `model` as "
                    "well, or remove image_size"
                )
            if not hasattr(trunk, "set_input_size"):  # open_clip would silently ignore the size
                raise ValueError(
                    f"image_size={image_size}, but timm {version('timm')} cannot change the size "
                    f"of its {type(trunk).__name__}: remove image_size, or try a newer timm (BEiT "
                    "is supported from 1.0.31 on)"
                )
            tower.set_input_size(image_size)
        return tower.image_size[0]

    @property
    def tower(self) -> nn.Module:
        """Image tower of open_clip: the backbone's own, or that of the segmentor's CLIP."""
        return self._shared_clip[0].visual if self._shared_clip else self.own_tower

    @property
    def _taken(self) -> list[int]:
        return sorted(set(self.out_indices))

    def cast(self, dtype: torch.dtype) -> None:
        """See :meth:`FrozenModule.cast`; a shared tower is cast by the segmentor's CLIP."""
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
        """Compute the feature maps of a batch of tiles.

        Args:
            tiles: (N, 3, H, W) in [0, 1], RGB, at least one patch in height and width.
            condition: ignored.

        Returns:
            One (N, channels[i], h, w) map for each index. h and w are height and width of the
            resized tile divided by ``strides[i]``.

        Raises:
            ImageError: the tiles are smaller than a patch.
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
        """Compute image embeddings, with the pooling and projection of the tower.

        At the size that the tower was trained on, the result equals open_clip's ``encode_image``.

        Args:
            tiles: (N, 3, H, W) in [0, 1], RGB.

        Returns:
            (N, embed_dim) float32, not L2-normalized.

        Raises:
            ValueError: ``out_indices`` does not contain the last block or level, so the layers
                after it do not exist.
        """
        if not self._whole:
            raise ValueError(
                f"embeddings need the last block of the tower, which out_indices="
                f"{self.out_indices} does not contain"
            )
        tower = self.tower
        with self.own_precision():
            if _is_vit(tower):
                pooled, _ = tower._pool(self._vit(tiles)[1])
                return (pooled @ tower.proj).float()
            return tower(self._prepare(tiles)).float()

    def _prepare(self, tiles: Tensor) -> Tensor:
        """Resize and normalize tiles, and convert them to the tower's floating point type."""
        tiles = fit_tiles(tiles, self.patch_size, self.divisor, self.image_size)
        return ((tiles - self.mean) / self.std).to(self.dtype)

    def _vit(self, tiles: Tensor) -> tuple[list[Tensor], Tensor]:
        """Run a ViT; return the maps of the used blocks and the tokens of the last one.

        The class token is the first token. Interpolation of the position embeddings allows any
        size, which open_clip's ``forward`` does not.
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
    """Return channels and stride of all levels in the format of timm's ``feature_info``."""
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
    """Build the image tower. If weights are returned, the values in the tower are undefined."""
    from open_clip.model import _build_vision_tower

    trunk = source.config.get("vision_cfg", {}).get("timm_model_name")
    if trunk:
        find_model(trunk, None)  # raises with suggestions for unknown names
    try:
        # timm must not download weights for the trunk
        vision = {**source.config["vision_cfg"], "timm_model_pretrained": False}
        options = (source.config["embed_dim"], vision, source.config.get("quick_gelu", False))
    except KeyError as error:
        raise ValueError(f"the config of a CLIP lacks {error}: see open_clip's configs") from None
    if source.path is None:
        with same_random_weights():
            return _build_vision_tower(*options), None
    with same_random_weights(), WithoutDrawing():  # some tokens are initialized nevertheless
        tower = _build_vision_tower(*options)
    known = {PREFIX + key for key in tower.state_dict()}
    state = read_clip(source.path, lambda key: key.startswith(PREFIX), known.__contains__)
    return tower, {key.removeprefix(PREFIX): value for key, value in state.items()}


def _prune(tower: nn.Module, indices: Sequence[int], whole: bool) -> None:
    """Remove all layers after the last map. If the last block is used, nothing is removed."""
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
            f"{path} does not contain weights of the image tower of {name}: {wrong}. Set "
            "`model` to the architecture of these weights."
        )
    floats = {k: state[k].float() if state[k].is_floating_point() else state[k] for k in wanted}
    tower.load_state_dict(floats, assign=True)
