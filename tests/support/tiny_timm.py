"""Tiny models, registered in timm, of families that timm offers only in large sizes.

They are built from timm's classes: Swin (windows), MViT-v2, BEiT and a ViT with relative positions
(each for a fixed image size), SAM (any image size) and Hiera (arguments in another order).
"""

from __future__ import annotations

import timm
from timm.models import (
    beit,
    build_model_with_cfg,
    generate_default_cfgs,
    hiera,
    mvitv2,
    register_model,
)
from timm.models import swin_transformer as swin
from timm.models import vision_transformer_relpos as relpos
from timm.models import vision_transformer_sam as sam
from torch import nn

SIZE = 64
CFG = dict(input_size=(3, SIZE, SIZE), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
FIXED = dict(CFG, fixed_input_size=True, hf_hub_id="timm/")

default_cfgs = generate_default_cfgs(
    {
        "tiny_swin.random_weights": dict(FIXED, classifier="head.fc"),
        "tiny_mvit.random_weights": dict(FIXED, classifier="head.fc"),
        "tiny_beit.random_weights": dict(FIXED, classifier="head"),
        "tiny_relpos.random_weights": dict(FIXED, classifier="head"),
        "tiny_sam.random_weights": FIXED,
        "tiny_hiera.random_weights": dict(FIXED, classifier="head.fc"),
        "tiny_beit.elsewhere": dict(FIXED, hf_hub_id=None, url="https://nowhere.invalid/b.pth"),
    }
)


@register_model
def tiny_swin(pretrained: bool = False, **kwargs: object) -> nn.Module:
    """Build a Swin with four stages and windows of 2 x 2 tokens, shifted in the first stage."""
    sizes = dict(embed_dim=16, depths=(2, 1, 1, 1), num_heads=(1, 2, 2, 4), window_size=2)
    return build_model_with_cfg(
        swin.SwinTransformer,
        "tiny_swin",
        pretrained,
        pretrained_filter_fn=swin.checkpoint_filter_fn,
        **{**sizes, **kwargs},
    )


@register_model
def tiny_mvit(pretrained: bool = False, **kwargs: object) -> nn.Module:
    """Build an MViT-v2 with four stages of one block each and a class token."""
    cfg = mvitv2.MultiScaleVitCfg(
        depths=(1, 1, 1, 1), embed_dim=16, num_heads=1, use_cls_token=True
    )
    return build_model_with_cfg(
        mvitv2.MultiScaleVit,
        "tiny_mvit",
        pretrained,
        model_cfg=cfg,
        pretrained_filter_fn=mvitv2.checkpoint_filter_fn,
        **kwargs,
    )


@register_model
def tiny_beit(pretrained: bool = False, **kwargs: object) -> nn.Module:
    """Build a BEiT with six blocks and patches of 16 x 16 pixels, without absolute positions."""
    sizes = dict(
        patch_size=16,
        embed_dim=32,
        depth=6,
        num_heads=2,
        use_abs_pos_emb=False,
        use_rel_pos_bias=True,
        init_values=0.1,
    )
    return build_model_with_cfg(
        beit.Beit,
        "tiny_beit",
        pretrained,
        pretrained_filter_fn=beit.checkpoint_filter_fn,
        **{**sizes, **kwargs},
    )


@register_model
def tiny_relpos(pretrained: bool = False, **kwargs: object) -> nn.Module:
    """Build a ViT with six blocks, patches of 16 x 16 pixels and no class token.

    A small network computes the relative positions.
    """
    sizes = dict(
        img_size=SIZE,
        patch_size=16,
        embed_dim=32,
        depth=6,
        num_heads=2,
        qkv_bias=False,
        fc_norm=True,
    )
    return build_model_with_cfg(
        relpos.VisionTransformerRelPos, "tiny_relpos", pretrained, **{**sizes, **kwargs}
    )


@register_model
def tiny_sam(pretrained: bool = False, **kwargs: object) -> nn.Module:
    """Build a SAM with four blocks and patches of 16 x 16 pixels.

    Every other block has windows of 3 x 3 tokens.
    """
    sizes = dict(
        img_size=SIZE,
        patch_size=16,
        embed_dim=32,
        depth=4,
        num_heads=2,
        window_size=3,
        global_attn_indexes=(1, 3),
        use_rel_pos=True,
        num_classes=0,
    )
    return build_model_with_cfg(
        sam.VisionTransformerSAM,
        "tiny_sam",
        pretrained,
        pretrained_filter_fn=sam.checkpoint_filter_fn,
        **{**sizes, **kwargs},
    )


@register_model
def tiny_hiera(pretrained: bool = False, **kwargs: object) -> nn.Module:
    """Build a Hiera with four stages of one block each."""
    sizes = dict(img_size=(SIZE, SIZE), embed_dim=16, num_heads=1, stages=(1, 1, 1, 1))
    return build_model_with_cfg(
        hiera.Hiera,
        "tiny_hiera",
        pretrained,
        pretrained_filter_fn=hiera.checkpoint_filter_fn,
        **{**sizes, **kwargs},
    )


assert {name.partition(".")[0] for name in default_cfgs} <= set(timm.list_models())
