"""Forward pass of open_clip's causal text towers, without the positions after the end token."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def end_positions(model: nn.Module, tokens: Tensor) -> Tensor | None:
    """Find the position of each text whose output is the text embedding.

    In a causal text tower, a position depends only on the positions before it, so everything
    after the end token can be left out. This holds neither for towers without a causal mask
    (SigLIP, CLIPA, most MobileCLIPs, those of Hugging Face), nor for those that read their output
    at another position (the last one, or CoCa's class token).

    Args:
        model: ``open_clip.CLIP`` or ``open_clip.CustomTextCLIP``.
        tokens: (N, ``context_length``) int64.

    Returns:
        (N,) int64 in [0, ``context_length``), or None if the tower needs all positions.
    """
    tower = getattr(model, "text", model)
    # open_clip.CLIP holds the parts of its text tower itself, under other names
    prefix = "" if hasattr(model, "text") else "text_"
    if getattr(tower, "attn_mask", None) is None or getattr(tower, "cls_emb", None) is not None:
        return None
    pool = getattr(tower, f"{prefix}pool_type", None)
    if pool == "argmax":
        return tokens.argmax(dim=-1)
    end = getattr(tower, f"{prefix}eos_id", None)
    if pool == "eos" and end is not None:
        return (tokens == end).int().argmax(dim=-1)
    return None


def encode_cut(model: nn.Module, tokens: Tensor, ends: Tensor, length: int) -> Tensor:
    """Compute text embeddings like ``model.encode_text``, from the first positions only.

    Args:
        model: see :func:`end_positions`.
        tokens: (N, ``context_length``) int64.
        ends: (N,) int64, result of :func:`end_positions`.
        length: number of positions to compute, greater than ``ends``.

    Returns:
        (N, ``embed_dim``) in the floating point type of the tower.
    """
    tower = getattr(model, "text", model)
    dtype = tower.transformer.get_cast_dtype()
    x = tower.token_embedding(tokens[:, :length]).to(dtype)
    x = x + tower.positional_embedding[:length].to(dtype)
    x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
    x = tower.ln_final(x[torch.arange(len(x), device=x.device), ends])
    projection = tower.text_projection
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Module) else x @ projection
