# A tiny SAM 3 with random weights, which needs no download. Its results are meaningless.
_base_ = ["sam3_panoptic.py"]

random_weights = True

small = dict(hidden_size=32, num_layers=1, num_attention_heads=2, intermediate_size=48)
backbone = dict(
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
)
model = dict(
    proposals=dict(
        _delete_=True,
        type="Sam3Proposals",
        threshold=0.25,  # random scores are about a quarter
        arch=dict(
            model_type="sam3",
            vision_config=dict(
                backbone_config=backbone,
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
            geometry_encoder_config=small,
            detr_encoder_config=small,
            detr_decoder_config=dict(
                hidden_size=32,
                num_layers=2,
                num_queries=10,
                num_attention_heads=2,
                intermediate_size=48,
            ),
            mask_decoder_config=dict(hidden_size=32, num_attention_heads=2),
            initializer_range=0.2,
        ),
    ),
    # Random masks overlap so much that the usual threshold, 0.8, would remove most of them.
    test_cfg=dict(overlap_threshold=0.2),
)
