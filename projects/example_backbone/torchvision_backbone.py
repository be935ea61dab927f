"""Backbone with the feature maps of torchvision's image classifiers."""

import copy
import difflib
from collections.abc import Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor
from torchvision.models.feature_extraction import create_feature_extractor

from odise_mm.errors import CheckpointError
from odise_mm.models.backbones.base import Backbone
from odise_mm.models.frozen import is_meta_context, same_random_weights
from odise_mm.registry import MODELS


@MODELS.register_module()
class TorchvisionBackbone(Backbone):
    """Backbone that returns the (B, C, H, W) outputs of layers of a frozen torchvision classifier.

    Args:
        model: torchvision's name, such as ``resnet50``, ``regnet_y_8gf`` or ``convnext_tiny``.
        layers: Names of the layers, such as ``layer1``.
        weights: torchvision's name of the weights, such as ``IMAGENET1K_V2``; None: random weights,
            which are the same every time.

    Raises:
        ValueError: The model or the weights are unknown, or a layer has no (B, C, H, W) output.
        CheckpointError: The weights cannot be downloaded.
    """

    def __init__(self, model: str, layers: Sequence[str], weights: str | None = None) -> None:
        super().__init__()
        _check_name("classifier", model, torchvision.models.list_models(torchvision.models))
        known = torchvision.models.get_model_weights(model)
        with same_random_weights():
            net = torchvision.models.get_model(model)
        if weights is not None:
            _check_name(f"weights of {model} called", weights, known.__members__)
            if not is_meta_context():  # the meta device needs only shapes
                net.load_state_dict(_download(known[weights]))
        self.net = create_feature_extractor(net, list(layers))
        shapes = copy.deepcopy(self.net).to("meta").eval()
        maps = shapes(torch.empty(1, 3, 64, 128, device="meta")).values()
        if any(m.ndim != 4 or m.shape[-1] != 2 * m.shape[-2] for m in maps):
            raise ValueError(
                f"{model}: not all outputs of {', '.join(layers)} are (B, C, H, W) feature maps"
            )
        self.channels = tuple(m.shape[1] for m in maps)
        self.strides = tuple(64 // m.shape[-2] for m in maps)
        transform = known[weights or "DEFAULT"].transforms()
        self.register_buffer("mean", torch.tensor(transform.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(transform.std).view(3, 1, 1))
        self.freeze()  # no gradients, always in eval mode, not in checkpoints

    def forward(self, tiles: Tensor, *condition: Any) -> list[Tensor]:
        """Compute the feature maps; see :class:`~odise_mm.models.backbones.base.Backbone`.

        Args:
            tiles: (B, 3, H, W), values from 0 to 1.
            condition: Ignored.
        """
        with self.own_precision():
            return list(self.net(((tiles - self.mean) / self.std).to(self.dtype)).values())


def _check_name(what: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or list(known)
        raise ValueError(f"torchvision has no {what} {name!r}; did you mean {', '.join(close)}?")


def _download(weights: torchvision.models.WeightsEnum) -> dict[str, Tensor]:
    try:
        return weights.get_state_dict(check_hash=True, weights_only=True)
    except OSError as error:
        raise CheckpointError(
            f"{weights.url}: download failed ({error}); get the file by other means and put it "
            f"into {torch.hub.get_dir()}/checkpoints"
        ) from error
