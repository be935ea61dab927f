"""Forward pass of the vision transformers of open_clip, with a token for every mask if needed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn

from odise_mm.models.fast_layers import linear


class FrozenBlock(ResidualAttentionBlock):
    """Block of a frozen vision transformer, which needs less memory and time without gradients."""

    def forward(
        self,
        q_x: Tensor,
        k_x: Tensor | None = None,
        v_x: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """Compute the block.

        Args:
            q_x: tokens, (B, N, C).
            k_x, v_x: not used in vision transformers.
            attn_mask: (B, Q, K) bool with Q < N. The last Q tokens attend to those of the first K
                tokens that are True for them. All others attend to the first K tokens. None: all
                attend to all. A mask for all N tokens means what it means in open_clip.

        Returns:
            (B, N, C)
        """
        whole = attn_mask is not None and attn_mask.shape[-2] == q_x.shape[1]
        if whole or (torch.is_grad_enabled() and attn_mask is None):
            return super().forward(q_x, k_x, v_x, attn_mask)
        x = q_x + self.ls_1(self._attend(self.ln_1(q_x), attn_mask))
        hidden = self.mlp.c_fc(self.ln_2(x))
        if isinstance(self.mlp.gelu, QuickGELU):
            hidden *= (1.702 * hidden).sigmoid_()
        else:
            hidden = self.mlp.gelu(hidden)
        x += self.ls_2(self.mlp.c_proj(hidden))
        return x

    def _attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        attn = self.attn
        batch, count, width = x.shape
        projected = linear(x, attn.in_proj_weight, attn.in_proj_bias)
        query, key, value = projected.view(batch, count, 3, attn.num_heads, -1).permute(
            2, 0, 3, 1, 4
        )
        if mask is None:
            out = F.scaled_dot_product_attention(query, key, value)
        else:
            masked, keys = mask.shape[1:]
            key, value = key[:, :, :keys], value[:, :, :keys]
            parts = [
                F.scaled_dot_product_attention(query[:, :, : count - masked], key, value),
                F.scaled_dot_product_attention(
                    query[:, :, count - masked :], key, value, attn_mask=mask[:, None]
                ),
            ]
            out = torch.cat(parts, dim=2)
        out = out.transpose(1, 2).reshape(batch, count, width)
        return linear(out, attn.out_proj.weight, attn.out_proj.bias)


def use_frozen_blocks(visual: nn.Module) -> None:
    """Replace the class of the blocks of a vision transformer by :class:`FrozenBlock`.

    Args:
        visual: image tower, changed in place. Towers with other blocks are left as they are.
    """
    for block in getattr(getattr(visual, "transformer", None), "resblocks", ()):
        if type(block) is ResidualAttentionBlock and block.attn.batch_first:
            block.__class__ = FrozenBlock


def attend_to_patches(visual: nn.Module, tokens: Tensor, patches: Tensor) -> Tensor:
    """Run a vision transformer with tokens for masks, to which no other token attends.

    Args:
        visual: image tower, whose blocks may be of any class.
        tokens: class token, P patches, and Q tokens for masks, (B, 1 + P + Q, C).
        patches: which patches each mask touches, (B, Q, P) bool. A token for a mask attends to
            these and to the class token.

    Returns:
        The tokens for the masks, (B, Q, C).
    """
    queries, count = patches.shape[1:]
    visible = F.pad(patches, (1, 0), value=True)
    blocks = visual.transformer.resblocks
    if all(isinstance(block, FrozenBlock) for block in blocks):
        return visual.transformer(tokens, attn_mask=visible)[:, 1 + count :]
    whole = patches.new_zeros(len(tokens), tokens.shape[1], tokens.shape[1])
    whole[:, : 1 + count, : 1 + count] = True
    whole[:, 1 + count :, : 1 + count] = visible
    hidden = torch.zeros_like(whole, dtype=tokens.dtype).masked_fill_(~whole, float("-inf"))
    heads = blocks[0].attn.num_heads
    out = visual.transformer(tokens, attn_mask=hidden.repeat_interleave(heads, dim=0))
    return out[:, 1 + count :]
