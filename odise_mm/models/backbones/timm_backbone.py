"""Features of any model of timm's, a plain ViT or a pyramid.

ODISE (arXiv 2303.04803, section 4.3) compares diffusion features with those of DeiT-v3, Swin,
ConvNeXt, MViT-v2, MoCo-v3, DINO, MAE and BEiT-v2; each is a config of this one backbone.
"""

import inspect
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odise_mm.errors import ImageError
from odise_mm.models.backbones.base import Backbone
from odise_mm.models.backbones.timm_weights import TimmWeights, find_model
from odise_mm.models.frozen import is_meta_context, same_random_weights
from odise_mm.registry import MODELS
from odise_mm.utils.settings import check_flag

PYRAMID = range(4, 33)  # strides that a feature pyramid has a use for


@MODELS.register_module()
class TimmBackbone(Backbone):
    """Raw feature maps of image tiles from a model of timm's, frozen by default.

    What lies behind the last map is neither kept nor loaded nor run. Mean and standard deviation
    are those of timm's config of the weights.

    A map is what its block or stage gives to the next one. In particular a plain ViT's maps are the
    residual stream *without* the model's last norm: that was trained for the last block alone, and
    the neck has norms of its own. Class and register tokens take part in the attention and are in
    no map.

    Sizes. Models that take any size get the tile itself, resized (bicubic, with antialias) up to
    the next multiple of their patch or coarsest stride; position tables are interpolated. Models
    made for one size (BEiT's and MViT's relative positions, say), and all models where
    ``image_size`` is given, get every tile resized to that size.

    Args:
        model: timm's name, with a tag (``vit_base_patch16_224.dino``) or without.
        weights: ``pretrained`` (the tag in ``model``, or timm's default), a tag, or a local file:
            safetensors or torch's, with timm's names or the original authors'. Then the tag in
            ``model`` still decides on mean and standard deviation. None leaves random weights, the
            same every time.
        out_indices: blocks (plain models) or levels (pyramids) to take, from the front to the back;
            negative ones count from the end. By default those at 1/4, 1/2, 3/4 and the whole depth
            of a plain model, and of a pyramid the last level of each stride from 4 to 32.
        image_size: edge of the square that the model is built for, in pixels. By default any size,
            or that of timm's config for models that are made for one.
        frozen: False trains the model with the rest and puts it into checkpoints.

    Attributes:
        image_size: the fixed edge in pixels, or None: any size.
        out_indices: what is taken, counted from 0.

    Raises:
        ValueError: no such model or tag (the nearest are named), an index or size that the model
            does not have.
        CheckpointError: weights missing, out of reach or of another
            model.
    """

    @classmethod
    def fetch_weights(cls, model: str, weights: str | None = None, **_: Any) -> None:
        """See :meth:`FrozenModule.fetch_weights`."""
        name, path = find_model(model, weights)
        if weights is not None:
            TimmWeights(name, path).fetch()

    def __init__(
        self,
        model: str,
        weights: str | None = None,
        out_indices: Sequence[int] | None = None,
        image_size: int | None = None,
        frozen: bool = True,
    ) -> None:
        super().__init__()
        import timm

        check_flag("frozen", frozen)
        name, path = find_model(model, weights)
        check_image_size(image_size)
        self.name = name
        options, self.image_size = _size_options(name, image_size)
        source = None if weights is None or is_meta_context() else TimmWeights(name, path)
        if source is None:
            with same_random_weights():
                network = timm.create_model(name, num_classes=0, **options)
        else:
            network = source.build(num_classes=0, **options)
        info = level_info(network, name)
        self.out_indices = choose_levels(info, out_indices, name)
        self.channels = tuple(info[i]["num_chs"] for i in self.out_indices)
        self.strides = tuple(info[i]["reduction"] for i in self.out_indices)
        self.patch_size = min(level["reduction"] for level in info)
        self.divisor = max(level["reduction"] for level in info[: self.out_indices[-1] + 1])
        if image_size is not None and image_size % self.patch_size:
            raise ValueError(
                f"image_size={image_size} is no multiple of the {self.patch_size} pixels of a "
                f"patch of {name}"
            )
        state = source and source.read(network)  # made for the network before it is pruned
        taken = sorted(set(self.out_indices))
        prune(network, taken)
        if source is not None:
            source.fill(network, state)
        self.network = network
        register_normalization(self, network.pretrained_cfg["mean"], network.pretrained_cfg["std"])
        if frozen:
            self.freeze()

    def forward(self, tiles: Tensor, *condition: Any) -> list[Tensor]:
        """Feature maps of a batch of tiles.

        Args:
            tiles: (N, 3, H, W) in [0, 1], RGB, at least a patch large.
            condition: not looked at.

        Returns:
            One (N, channels[i], h, w) map for every index, h and w those of the resized tile over
            ``strides[i]``.

        Raises:
            ImageError: tiles smaller than a patch, or of a size that the model refuses.
        """
        tiles = fit_tiles(tiles, self.patch_size, self.divisor, self.image_size)
        tiles = ((tiles - self.mean) / self.std).to(self.dtype)
        taken = sorted(set(self.out_indices))
        with self.own_precision():
            try:
                maps = self.network.forward_intermediates(
                    tiles, indices=taken, output_fmt="NCHW", intermediates_only=True
                )
            except AssertionError as error:  # how timm's layers refuse a size
                height, width = tiles.shape[-2:]
                raise ImageError(
                    f"timm's {self.name} takes no tiles of {height} x {width} pixels"
                    f"{f' ({error})' if str(error) else ''}: give the backbone an image_size that "
                    f"it takes, such as {self.network.pretrained_cfg['input_size'][-1]}"
                ) from error
        return [maps[taken.index(i)] for i in self.out_indices]

    def cast(self, dtype: torch.dtype) -> None:
        """See :meth:`FrozenModule.cast`; here buffers follow, for timm adds them to activations."""
        super().cast(dtype)
        if self.frozen:
            cast_buffers(self.network, dtype)


def cast_buffers(network: nn.Module, dtype: torch.dtype) -> None:
    """Cast a timm model's buffers but rotary position tables and batch norms' statistics."""
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) or "rope" in name:
            continue
        for buffer in module.buffers(recurse=False):
            if buffer.is_floating_point():
                buffer.data = buffer.data.to(dtype)


def _size_options(name: str, image_size: int | None) -> tuple[dict[str, Any], int | None]:
    """Arguments of timm's that settle the input size, and the fixed edge, if any."""
    known, cfg, any_size = _traits(name)
    if any_size:  # whatever size it is built for; and its files fit that of timm's config alone
        return {}, image_size
    if image_size is None:
        if "dynamic_img_size" in known:
            return {"dynamic_img_size": True}, None
        if "strict_img_size" in known:  # the same of Swin's, before timm 1.0.31
            return {"strict_img_size": False}, None
        if not cfg.get("fixed_input_size"):
            return {}, None
        image_size = cfg["input_size"][-1]
    return ({"img_size": image_size} if "img_size" in known else {}), image_size


@lru_cache
def _traits(name: str) -> tuple[set[str], dict[str, Any], bool]:
    """The arguments of a timm model's class, its config of the weights, and if it takes any size.

    SAM's ViT takes any as it is: it interpolates its tables to the tile at every call.
    """
    import timm

    with torch.device("meta"):
        network = timm.create_model(name, num_classes=0)
    known = _arguments(type(network))
    strict = getattr(getattr(network, "patch_embed", None), "strict_img_size", True)
    any_size = not strict and "dynamic_img_size" not in known
    return known, network.pretrained_cfg, any_size


def _arguments(cls: type) -> set[str]:
    """Names of all arguments of a class, those that it hands on to the classes below included."""
    names: set[str] = set()
    for base in cls.__mro__:
        parameters = inspect.signature(base.__init__).parameters
        names.update(parameters)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    return names


def level_info(network: nn.Module, name: str) -> list[dict[str, Any]]:
    """Channels (``num_chs``) and stride (``reduction``) of all that can be taken of a timm model.

    Raises:
        ValueError: the model gives no feature maps.
    """
    if not hasattr(network, "forward_intermediates") or not getattr(network, "feature_info", None):
        raise ValueError(f"timm's {name} gives no feature maps: it has no forward_intermediates")
    info = network.feature_info
    return [dict(level) for level in getattr(info, "info", info)]


def prune(network: nn.Module, taken: Sequence[int]) -> None:
    """Remove what lies behind the last of the levels ``taken`` of a timm model, with its norm.

    timm before 1.0.31 leaves two things: the later stages of MViT-v2, and the norm in the
    classifier head of ConvNeXt and its like.
    """
    from timm.layers import ClNormMlpClassifierHead, NormMlpClassifierHead

    levels = len(level_info(network, type(network).__name__))
    network.prune_intermediate_layers(list(taken), prune_norm=True, prune_head=True)
    if len(getattr(network, "stages", ())) == levels:  # one stage, one level
        network.stages = network.stages[: max(taken) + 1]
    if isinstance(getattr(network, "head", None), NormMlpClassifierHead | ClNormMlpClassifierHead):
        network.head = nn.Identity()


def choose_levels(
    info: Sequence[dict[str, Any]], indices: Sequence[int] | None, name: str
) -> tuple[int, ...]:
    """Which levels to take, from 0 and never falling; see :class:`TimmBackbone`.

    Raises:
        ValueError: an index out of range (what exists is listed), or indices that fall.
        TypeError: something else than whole numbers.
    """
    count = len(info)
    strides = [level["reduction"] for level in info]
    if indices is not None and not (
        isinstance(indices, Sequence) and all(type(i) is int for i in indices)
    ):
        raise TypeError(f"out_indices={indices!r} must be a list of whole numbers")
    if indices is None:
        if len(set(strides)) == 1:
            return tuple(-(-count * quarter // 4) - 1 for quarter in (1, 2, 3, 4))
        last = {stride: i for i, stride in enumerate(strides)}
        return tuple(i for stride, i in last.items() if stride in PYRAMID)
    chosen = tuple(i + count if i < 0 else i for i in indices)
    kinds = "blocks" if len(set(strides)) == 1 else "levels"
    there = f"{name} has {kinds} 0 to {count - 1}, of strides {_runs(strides)}"
    outside = [given for given, i in zip(indices, chosen, strict=True) if not 0 <= i < count]
    if outside:
        raise ValueError(f"out_indices names {', '.join(map(str, outside))}, but {there}")
    if not chosen or list(chosen) != sorted(chosen):
        raise ValueError(
            f"out_indices={tuple(indices)} must name at least one and never fall: {there}"
        )
    return chosen


def check_image_size(image_size: int | None) -> None:
    """Refuse what is no edge in pixels, before a model is built for it.

    Raises:
        TypeError, ValueError: something else than a whole number above 0.
    """
    if image_size is None:
        return
    if type(image_size) is not int:
        raise TypeError(f"image_size={image_size!r} must be one whole number, the square's edge")
    if image_size < 1:
        raise ValueError(f"image_size={image_size} must be at least 1 pixel")


def _runs(strides: Sequence[int]) -> str:
    return str(strides[0]) if len(set(strides)) == 1 else ", ".join(map(str, strides))


def register_normalization(module: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
    """Buffers ``mean`` and ``std``, (3, 1, 1), in no checkpoint."""
    device = "meta" if is_meta_context() else "cpu"
    for key, values in (("mean", mean), ("std", std)):
        value = torch.tensor(values, device=device).view(3, 1, 1)
        module.register_buffer(key, value, persistent=False)


def fit_tiles(tiles: Tensor, patch: int, divisor: int, image_size: int | None) -> Tensor:
    """Tiles resized to what a model takes: ``image_size``, or the next multiples of ``divisor``.

    Args:
        tiles: (N, 3, H, W).
        patch: the least edge that is any use, in pixels.

    Returns:
        (N, 3, h, w) float32; bicubic with antialias, as PIL resizes, where the size changes.

    Raises:
        ImageError: tiles smaller than a patch.
    """
    height, width = tiles.shape[-2:]
    if min(height, width) < patch:
        raise ImageError(
            f"tiles of {height} x {width} pixels are smaller than one patch of the backbone, "
            f"{patch} pixels: enlarge the image"
        )
    size = (-(-height // divisor) * divisor, -(-width // divisor) * divisor)
    if image_size is not None:
        size = (image_size, image_size)
    tiles = tiles.float()
    if size == (height, width):
        return tiles
    return F.interpolate(tiles, size, mode="bicubic", align_corners=False, antialias=True)
