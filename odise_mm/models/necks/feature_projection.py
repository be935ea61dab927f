"""Projection of raw feature maps to a pyramid (ODISE, supplement, "feature projection")."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odise_mm.errors import ConfigError
from odise_mm.registry import MODELS
from odise_mm.utils.settings import check_flag, check_whole

STRIDES = (4, 8, 16, 32)
GROUPS = 32


class BottleneckBlock(nn.Module):
    """Residual block of a 1x1, a 3x3 and a 1x1 convolution, each with group norm and ReLU.

    The shortcut is the identity if input and output have the same number of channels, and otherwise
    a 1x1 convolution with group norm.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        bottleneck_channels: channels between the convolutions.
    """

    def __init__(self, in_channels: int, out_channels: int, bottleneck_channels: int) -> None:
        super().__init__()
        self.conv1 = _conv_norm(in_channels, bottleneck_channels, 1)
        self.conv2 = _conv_norm(bottleneck_channels, bottleneck_channels, 3)
        self.conv3 = _conv_norm(bottleneck_channels, out_channels, 1)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else _conv_norm(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H, W)."""
        hidden = F.relu(self.conv1(x))
        hidden = F.relu(self.conv2(hidden))
        return F.relu(self.conv3(hidden) + self.shortcut(x))


def _conv_norm(in_channels: int, out_channels: int, size: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, size, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.GroupNorm(GROUPS, out_channels))


@MODELS.register_module()
class FeatureProjection(nn.Module):
    """Passes every raw map through its own bottleneck block and sums the maps of each stride.

    Args:
        in_channels: channels of every raw map.
        in_strides: stride of every raw map in pixels.
        out_channels: channels of the pyramid (published: 512).
        bottleneck_channels: channels inside a block (published: a quarter of these, 128).
        levels: stride of the pyramid level that each map is added to, by default its own stride.
            Strides 4, 8, 16 and 32 must all occur. The maps of a plain ViT all have one stride;
            ``levels=(4, 8, 16, 32)`` builds a pyramid from the maps of four depths.
        in_steps: number of diffusion time steps whose features are concatenated in every raw map,
            provided by diffusion backbones.
        join_steps: sum the features of the time steps with learned weights, instead of projecting
            their concatenation. Every map has its own weights, one for each step: a softmax of
            learned logits, which start at 0. (MMDiff, arXiv 2606.16673, learns weights that also
            vary over positions.) A map of one step is unchanged.

    Raises:
        ConfigError: a number of channels is not a multiple of 32.
        ValueError: a level is not in the pyramid, or a level of the pyramid has no map.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        out_channels: int = 512,
        bottleneck_channels: int = 128,
        levels: Sequence[int] | None = None,
        in_steps: Sequence[int] | None = None,
        join_steps: bool = False,
    ) -> None:
        super().__init__()
        check_flag("join_steps", join_steps)
        if join_steps and in_steps is None:
            raise ConfigError(
                "join_steps=True needs a backbone with diffusion time steps: use DiffusionBackbone "
                "or DiTBackbone, or join_steps=False"
            )
        for name, value in (
            ("out_channels", out_channels),
            ("bottleneck_channels", bottleneck_channels),
        ):
            check_whole(name, value)
            if value % GROUPS:
                raise ConfigError(f"{name}={value} must be a multiple of {GROUPS}, for group norm")
        self.levels = tuple(in_strides if levels is None else levels)
        if set(self.levels) != set(STRIDES) or len(self.levels) != len(in_channels):
            given = "" if levels is None else f", levels={self.levels} was given"
            raise ValueError(
                f"FeatureProjection needs feature maps for strides {STRIDES}; the backbone returns "
                f"{len(in_channels)} maps of strides {tuple(in_strides)}{given}. Set the level of "
                "each map in the neck's config, such as levels=(4, 8, 16, 32) for the four maps of "
                "a plain ViT"
            )
        self.out_channels = out_channels
        self.step_logits = nn.ParameterDict()  # by number of the map, if it has several steps
        if join_steps:
            in_channels = [c // steps for c, steps in zip(in_channels, in_steps, strict=True)]
            for index, steps in enumerate(in_steps):
                if steps > 1:
                    self.step_logits[str(index)] = nn.Parameter(torch.zeros(steps))
        self.blocks = nn.ModuleList(
            BottleneckBlock(channels, out_channels, bottleneck_channels) for channels in in_channels
        )

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, ...]:
        """Compute the pyramid of a batch of tiles.

        Args:
            features: the backbone's maps, each (N, in_channels[i], any, any). Every map is first
                resized (nearest) to ``size / levels[i]``.
            size: height and width of the tiles in the image, in pixels; multiples of 32.

        Returns:
            Maps of strides 4, 8, 16, 32, each (N, out_channels, height / stride, width / stride).
        """
        pyramid: dict[int, Tensor] = {}
        for index, (feature, stride, block) in enumerate(
            zip(features, self.levels, self.blocks, strict=True)
        ):
            if str(index) in self.step_logits:
                feature = _join(feature, self.step_logits[str(index)])
            target = (size[0] // stride, size[1] // stride)
            if feature.shape[-2:] != target:
                feature = F.interpolate(feature, target)
            projected = block(feature)
            pyramid[stride] = pyramid[stride] + projected if stride in pyramid else projected
        return tuple(pyramid[stride] for stride in STRIDES)


def _join(feature: Tensor, logits: Tensor) -> Tensor:
    """Sum the time steps of a map, (N, steps * C, h, w), with weights, (steps,) before softmax."""
    weights = logits.softmax(dim=0).to(feature.dtype)
    return torch.einsum("nschw,s->nchw", feature.unflatten(1, (len(logits), -1)), weights)
