"""Feature maps of torchvision's image classifiers: a backbone outside the package."""

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
    """Outputs of named layers of a frozen torchvision classifier with maps (B, C, H, W).

    Args:
        model: torchvision's name, such as ``resnet50``, ``regnet_y_8gf`` or ``convnext_tiny``.
        layers: names of the layers, such as ``layer1``.
        weights: torchvision's name of weights, such as ``IMAGENET1K_V2``; None: the same random
            ones every time.
    """

    def __init__(self, model: str, layers: Sequence[str], weights: str | None = None) -> None:
        super().__init__()
        _check_name("classifier", model, torchvision.models.list_models(torchvision.models))
        known = torchvision.models.get_model_weights(model)
        with same_random_weights():
            net = torchvision.models.get_model(model)
        if weights is not None:
            _check_name(f"weights of {model} called", weights, known.__members__)
            if not is_meta_context():  # shapes can be had without weights
                net.load_state_dict(_download(known[weights]))
        self.net = create_feature_extractor(net, list(layers))
        shapes = copy.deepcopy(self.net).to("meta").eval()
        maps = shapes(torch.empty(1, 3, 64, 128, device="meta")).values()
        if any(m.ndim != 4 or m.shape[-1] != 2 * m.shape[-2] for m in maps):
            raise ValueError(f"{model}: not all of {', '.join(layers)} are maps (B, C, H, W)")
        self.channels = tuple(m.shape[1] for m in maps)
        self.strides = tuple(64 // m.shape[-2] for m in maps)
        transform = known[weights or "DEFAULT"].transforms()
        self.register_buffer("mean", torch.tensor(transform.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(transform.std).view(3, 1, 1))
        self.freeze()  # no gradients, always in eval mode, not in checkpoints

    def forward(self, tiles: Tensor, *condition: Any) -> list[Tensor]:
        """See :class:`~odise_mm.models.backbones.base.Backbone`; takes no condition."""
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
            f"{weights.url} cannot be fetched ({error}); place the file by hand into "
            f"{torch.hub.get_dir()}/checkpoints"
        ) from error
