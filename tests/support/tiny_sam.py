"""Tiny architectures of transformers' SAM models, with random weights of a large variance."""

from __future__ import annotations

from typing import Any

from mmdet.structures import DetDataSample

SAM: dict[str, Any] = dict(
    model_type="sam",
    vision_config=dict(
        hidden_size=32,
        output_channels=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
        window_size=2,
        global_attn_indexes=[0],
        num_pos_feats=8,
        mlp_dim=32,
        initializer_range=0.3,
    ),
    prompt_encoder_config=dict(hidden_size=16, image_size=64, patch_size=16, mask_input_channels=4),
    mask_decoder_config=dict(
        hidden_size=16,
        mlp_dim=32,
        num_attention_heads=2,
        iou_head_hidden_dim=16,
        num_hidden_layers=1,
    ),
    initializer_range=0.3,
)
SAM2: dict[str, Any] = dict(
    model_type="sam2",
    vision_config=dict(
        backbone_config=dict(
            hidden_size=8,
            num_attention_heads=1,
            image_size=[64, 64],
            blocks_per_stage=[1, 1, 2, 1],
            embed_dim_per_stage=[8, 16, 32, 64],
            num_attention_heads_per_stage=[1, 1, 2, 2],
            window_size_per_stage=[4, 2, 2, 2],
            global_attention_blocks=[3],
            window_positional_embedding_background_size=[2, 2],
            initializer_range=0.3,
        ),
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=32,
        initializer_range=0.3,
    ),
    prompt_encoder_config=dict(hidden_size=32, image_size=64, patch_size=16, mask_input_channels=4),
    mask_decoder_config=dict(
        hidden_size=32,
        mlp_dim=32,
        num_attention_heads=2,
        iou_head_hidden_dim=16,
        num_hidden_layers=1,
    ),
    initializer_range=0.3,
)
_SMALL = dict(hidden_size=32, num_layers=1, num_attention_heads=2, intermediate_size=48)
SAM3: dict[str, Any] = dict(
    model_type="sam3",
    vision_config=dict(
        backbone_config=dict(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=112,
            patch_size=14,
            window_size=4,
            global_attn_indexes=[1],
            pretrain_image_size=56,
            initializer_range=0.2,
        ),
        fpn_hidden_size=32,
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
    ),
    text_config=dict(
        model_type="clip_text_model",
        vocab_size=49408,
        hidden_size=32,
        intermediate_size=48,
        projection_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        hidden_act="gelu",
    ),
    geometry_encoder_config=_SMALL,
    detr_encoder_config=_SMALL,
    detr_decoder_config={**_SMALL, "num_layers": 2, "num_queries": 10},
    mask_decoder_config=dict(hidden_size=32, num_attention_heads=2),
    initializer_range=0.2,
)


def sample(
    size: tuple[int, int],
    padded: tuple[int, int] | None = None,
    original: tuple[int, int] | None = None,
    **names: Any,
) -> DetDataSample:
    """Return a data sample of an image.

    Args:
        size: height and width of the image.
        padded: with padding; None: none.
        original: of the image file; None: the same.
        names: ``img_path`` and ``img_id``.
    """
    return DetDataSample(
        metainfo=dict(img_shape=size, pad_shape=padded or size, ori_shape=original or size, **names)
    )
