"""Features of timm models: plain ViTs and pyramids.

ODISE (arXiv 2303.04803, section 4.3) compares diffusion features with those of DeiT-v3, Swin,
ConvNeXt, MViT-v2, MoCo-v3, DINO, MAE and BEiT-v2. Each of them is a config of this backbone.
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

PYRAMID = range(4, 33)  # strides of a feature pyramid


@MODELS.register_module()
class TimmBackbone(Backbone):
    """Raw feature maps of image tiles from a timm model, frozen by default.

    Layers after the last map are removed: they are neither loaded nor run. Mean and standard
    deviation come from timm's config of the weights.

    A map is the output of a block or stage. In particular, the maps of a plain ViT are the residual
    stream *without* the model's last norm, which was only trained for the last block; the neck has
    its own norms. Class and register tokens take part in the attention, but are not in the maps.

    Models that support any input size get the tile, resized (bicubic, with antialiasing) up to the
    next multiple of their patch size or largest stride; position embeddings are interpolated. For
    models with a fixed input size (such as BEiT and MViT with their relative positions), and for
    all models if ``image_size`` is set, tiles are resized to that size.

    Args:
        model: name of a timm model, with or without a tag (``vit_base_patch16_224.dino``).
        weights: ``pretrained`` (the tag in ``model``, or timm's default), a tag, or a local file:
            safetensors or a torch file, with timm's key names or those of the original authors. For
            a local file, the tag in ``model`` still determines mean and standard deviation. None:
            random weights, the same every time.
        out_indices: blocks (plain models) or levels (pyramids) to return, in ascending order.
            Negative ones count from the end. By default, the blocks at 1/4, 1/2, 3/4 and the end of
            a plain model, or the last level of each stride from 4 to 32 of a pyramid.
        image_size: height and width in pixels that the model is built for. By default any size,
            or the one of timm's config for models with a fixed size.
        frozen: False trains the model and saves it in checkpoints.
        norm_eval: whether batch norms keep their statistics while the model is trained, as is usual
            when pre-trained weights are fine-tuned with few images per GPU.

    Attributes:
        image_size: fixed height and width in pixels. None: any size.
        out_indices: the returned blocks or levels, counted from 0.

    Raises:
        ValueError: unknown model or tag (the message lists similar ones); an index or size that the
            model does not support.
        CheckpointError: the weights are missing, cannot be downloaded or belong to another model.
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
        norm_eval: bool = False,
    ) -> None:
        super().__init__()
        import timm

        check_flag("frozen", frozen)
        check_flag("norm_eval", norm_eval)
        self.norm_eval = norm_eval
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
                f"image_size={image_size} must be a multiple of the patch size of {name}, "
                f"{self.patch_size} pixels"
            )
        state = source and source.read(network)  # timm's conversion needs the unpruned network
        taken = sorted(set(self.out_indices))
        prune(network, taken)
        if source is not None:
            source.fill(network, state)
        self.network = network
        register_normalization(self, network.pretrained_cfg["mean"], network.pretrained_cfg["std"])
        if frozen:
            self.freeze()

    def forward(self, tiles: Tensor, *condition: Any) -> list[Tensor]:
        """Compute the feature maps of a batch of tiles.

        Args:
            tiles: (N, 3, H, W) in [0, 1], RGB, at least one patch in height and width.
            condition: ignored.

        Returns:
            One (N, channels[i], h, w) map for each index. h and w are height and width of the
            resized tile divided by ``strides[i]``.

        Raises:
            ImageError: the tiles are smaller than a patch, or the model does not support their
                size.
        """
        tiles = fit_tiles(tiles, self.patch_size, self.divisor, self.image_size)
        tiles = ((tiles - self.mean) / self.std).to(self.dtype)
        taken = sorted(set(self.out_indices))
        with self.own_precision():
            try:
                maps = self.network.forward_intermediates(
                    tiles, indices=taken, output_fmt="NCHW", intermediates_only=True
                )
            except AssertionError as error:  # raised by timm's layers for unsupported sizes
                height, width = tiles.shape[-2:]
                raise ImageError(
                    f"timm's {self.name} does not support tiles of {height} x {width} pixels"
                    f"{f' ({error})' if str(error) else ''}: set image_size of the backbone to a "
                    f"supported size, such as {self.network.pretrained_cfg['input_size'][-1]}"
                ) from error
        return [maps[taken.index(i)] for i in self.out_indices]

    def train(self, mode: bool = True) -> "TimmBackbone":
        """See :meth:`FrozenModule.train`; with ``norm_eval``, batch norms stay in eval mode."""
        super().train(mode)
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def cast(self, dtype: torch.dtype) -> None:
        """See :meth:`FrozenModule.cast`; also casts buffers, which timm adds to activations."""
        super().cast(dtype)
        if self.frozen:
            cast_buffers(self.network, dtype)


def cast_buffers(network: nn.Module, dtype: torch.dtype) -> None:
    """Cast the buffers of a timm model, except for rotary embeddings and batch norm statistics."""
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) or "rope" in name:
            continue
        for buffer in module.buffers(recurse=False):
            if buffer.is_floating_point():
                buffer.data = buffer.data.to(dtype)


def _size_options(name: str, image_size: int | None) -> tuple[dict[str, Any], int | None]:
    """Return timm arguments for the input size, and the fixed height and width, or None."""
    known, cfg, any_size = _traits(name)
    if any_size:  # timm's weights files only match the default size
        return {}, image_size
    if image_size is None:
        if "dynamic_img_size" in known:
            return {"dynamic_img_size": True}, None
        if "strict_img_size" in known:  # the equivalent for Swin before timm 1.0.31
            return {"strict_img_size": False}, None
        if not cfg.get("fixed_input_size"):
            return {}, None
        image_size = cfg["input_size"][-1]
    return ({"img_size": image_size} if "img_size" in known else {}), image_size


@lru_cache
def _traits(name: str) -> tuple[set[str], dict[str, Any], bool]:
    """Return the arguments of a model's class, its weights' config, and if any size is supported.

    The last one is only true for models that need no option for it. SAM's ViT, for example,
    interpolates its position embeddings in each forward pass.
    """
    import timm

    with torch.device("meta"):
        network = timm.create_model(name, num_classes=0)
    known = _arguments(type(network))
    strict = getattr(getattr(network, "patch_embed", None), "strict_img_size", True)
    any_size = not strict and "dynamic_img_size" not in known
    return known, network.pretrained_cfg, any_size


def _arguments(cls: type) -> set[str]:
    """Return the names of all arguments of a class, including those passed to base classes."""
    names: set[str] = set()
    for base in cls.__mro__:
        parameters = inspect.signature(base.__init__).parameters
        names.update(parameters)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    return names


def level_info(network: nn.Module, name: str) -> list[dict[str, Any]]:
    """Return channels (``num_chs``) and stride (``reduction``) of all levels of a timm model.

    Args:
        network: the timm model.
        name: name of the model for messages.

    Raises:
        ValueError: the model does not provide feature maps.
    """
    if not hasattr(network, "forward_intermediates") or not getattr(network, "feature_info", None):
        raise ValueError(
            f"timm's {name} has no feature maps: it lacks forward_intermediates or feature_info"
        )
    info = network.feature_info
    return [dict(level) for level in getattr(info, "info", info)]


def prune(network: nn.Module, taken: Sequence[int]) -> None:
    """Remove all layers after the last of the levels ``taken`` of a timm model, and the last norm.

    timm before 1.0.31 keeps two things, which are removed here: the later stages of MViT-v2, and
    the norm in the classification head of ConvNeXt and similar models.

    Args:
        network: the timm model, changed in place.
        taken: the levels that are used, counted from 0.
    """
    from timm.layers import ClNormMlpClassifierHead, NormMlpClassifierHead

    levels = len(level_info(network, type(network).__name__))
    network.prune_intermediate_layers(list(taken), prune_norm=True, prune_head=True)
    if len(getattr(network, "stages", ())) == levels:  # each stage is a level
        network.stages = network.stages[: max(taken) + 1]
    if isinstance(getattr(network, "head", None), NormMlpClassifierHead | ClNormMlpClassifierHead):
        network.head = nn.Identity()


def choose_levels(
    info: Sequence[dict[str, Any]], indices: Sequence[int] | None, name: str
) -> tuple[int, ...]:
    """Return the levels to use, counted from 0, in ascending order; see :class:`TimmBackbone`.

    Args:
        info: the result of :func:`level_info`.
        indices: ``out_indices`` of the config.
        name: name of the model for messages.

    Raises:
        ValueError: an index is out of range (the message lists all levels), or the indices are
            empty or not in ascending order.
        TypeError: the indices are not a list of integers.
    """
    count = len(info)
    strides = [level["reduction"] for level in info]
    if indices is not None and not (
        isinstance(indices, Sequence) and all(type(i) is int for i in indices)
    ):
        raise TypeError(f"out_indices={indices!r} must be a list of integers")
    if indices is None:
        if len(set(strides)) == 1:
            return tuple(-(-count * quarter // 4) - 1 for quarter in (1, 2, 3, 4))
        last = {stride: i for i, stride in enumerate(strides)}
        return tuple(i for stride, i in last.items() if stride in PYRAMID)
    chosen = tuple(i + count if i < 0 else i for i in indices)
    kinds = "blocks" if len(set(strides)) == 1 else "levels"
    available = f"{name} has {kinds} 0 to {count - 1} with strides {_format_strides(strides)}"
    outside = [given for given, i in zip(indices, chosen, strict=True) if not 0 <= i < count]
    if outside:
        raise ValueError(f"out_indices contains {', '.join(map(str, outside))}, but {available}")
    if not chosen or list(chosen) != sorted(chosen):
        raise ValueError(
            f"out_indices={tuple(indices)} must contain at least one index, in ascending order: "
            f"{available}"
        )
    return chosen


def check_image_size(image_size: int | None) -> None:
    """Raise if ``image_size`` is not a positive integer or None.

    Raises:
        TypeError: it is not an integer.
        ValueError: it is less than 1.
    """
    if image_size is None:
        return
    if type(image_size) is not int:
        raise TypeError(f"image_size={image_size!r} must be an integer, the height and width")
    if image_size < 1:
        raise ValueError(f"image_size={image_size} must be at least 1 pixel")


def _format_strides(strides: Sequence[int]) -> str:
    return str(strides[0]) if len(set(strides)) == 1 else ", ".join(map(str, strides))


def register_normalization(module: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
    """Register the buffers ``mean`` and ``std``, (3, 1, 1), which are not saved in checkpoints."""
    device = "meta" if is_meta_context() else "cpu"
    for key, values in (("mean", mean), ("std", std)):
        value = torch.tensor(values, device=device).view(3, 1, 1)
        module.register_buffer(key, value, persistent=False)


def fit_tiles(tiles: Tensor, patch: int, divisor: int, image_size: int | None) -> Tensor:
    """Resize tiles to a size that a model supports.

    Args:
        tiles: (N, 3, H, W).
        patch: smallest supported height and width in pixels.
        divisor: without ``image_size``, H and W are rounded up to multiples of this.
        image_size: height and width of the result in pixels, or None.

    Returns:
        (N, 3, h, w) float32. Resizing is bicubic with antialiasing, as in PIL.

    Raises:
        ImageError: the tiles are smaller than a patch.
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
