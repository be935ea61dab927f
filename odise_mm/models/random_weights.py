"""Random weights for running a model without trained weights."""

import re

import torch
from torch import nn

from odise_mm.models.clip.text_encoder import TextEncoder

RANDOM_WEIGHTS_NOTICE = (
    "Random weights: no trained weights were given, so masks and names are meaningless."
)

# With default initialization, all queries collapse onto one mask and one class. Weak residual
# branches, strong queries and a strong dependence of text embeddings on the words keep them apart.
# The first matching pattern counts. Factors scale a normal distribution with fan-in scaling;
# constants replace it.
_FACTORS: tuple[tuple[str, float], ...] = (
    (r"head\.query_(feat|embed)\.weight$", 16.0),
    (r"head\.transformer_decoder\.layers\.\d+\.(self|cross)_attn\.attn\.out_proj\.", 0.2),
    (r"head\.transformer_decoder\.layers\.\d+\.ffn\.layers\.1\.", 0.2),
    (r"head\.mask_embedding\.pool_proj\.1\.weight$", 0.5),
    (r"head\.pixel_decoder\.mask_feature\.bias$", 2.0),
    (r"clip\.model\.visual\.conv1\.weight$", 3.0),
    (r"clip\.model\.token_embedding\.weight$", 8.0),
    (r"clip\.model\.visual\.transformer\..*\.in_proj_weight$", 2.0),
    (r"clip\.model\.visual\.transformer\..*\.out_proj\.weight$", 4.0),
    (r"clip\.model\.transformer\..*\.(in_proj_weight|out_proj\.weight)$", 2.0),
    (r"clip\.model\..*\.c_proj\.weight$", 0.5),
)
_CONSTANTS: tuple[tuple[str, float], ...] = (
    (r"classifiers\.0\.logit_scale$", 2.0),
    (r"clip\.model\.logit_scale$", 4.6052),
)


@torch.no_grad()
def fill_with_random_weights(model: nn.Module, parts: tuple[str, ...], seed: int = 36) -> None:
    """Fill parts of a model with random weights that produce different masks and class names.

    Args:
        model: an :class:`~odise_mm.models.OpenVocabSegmentor` on the CPU, changed in place.
        parts: first components of the parameter names: ``("head", "classifiers", "clip")``.
        seed: seed of the random weights. The default gives several regions on the demo image.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.partition(".")[0] in parts:
            parameter.copy_(_random_weights(name, parameter, generator))
    for module in model.modules():
        if isinstance(module, TextEncoder):
            module.forget()


def _random_weights(
    name: str, parameter: torch.Tensor, generator: torch.Generator
) -> torch.Tensor | float:
    for pattern, value in _CONSTANTS:
        if re.search(pattern, name):
            return torch.tensor(value)
    draw = torch.randn(parameter.shape, generator=generator)
    factor = next((value for pattern, value in _FACTORS if re.search(pattern, name)), 1.0)
    if parameter.ndim >= 2:
        return draw * factor / (parameter.numel() / len(parameter)) ** 0.5
    if name.endswith("weight"):  # the scale of a norm
        return 1 + 0.1 * draw
    return 0.1 * factor * draw
