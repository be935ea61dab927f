# ODISE (arXiv 2303.04803): common settings of label and caption supervision.
custom_imports = dict(imports=["odise_mm.models"], allow_failed_imports=False)

model = dict(
    type="OpenVocabSegmentor",
    # From uint8 BGR to RGB in [0, 1], padded with zeros (bottom, right) to multiples of 64.
    data_preprocessor=dict(
        type="mmdet.DetDataPreprocessor",
        mean=[0.0, 0.0, 0.0],
        std=[255.0, 255.0, 255.0],
        bgr_to_rgb=True,
        pad_size_divisor=64,
    ),
    tile_size=512,
    max_tiles_per_batch=4,
    # Shared by the captioner, the text encoder and the second classifier.
    clip=dict(type="FrozenCLIP", model="ViT-L-14-336-quickgelu", weights="openai"),
    backbone=dict(
        type="DiffusionBackbone",
        arch="sd_v1",
        weights="CompVis/stable-diffusion-v1-3",
        taps=dict(vae_encoder=(5, 7), unet=(2, 5, 8, 11), vae_decoder=(2, 5)),
        steps=(0,),
        noise_seed=42,
        # Recompute the UNet's activations in the backward pass: less memory, more time.
        use_checkpoint=False,
    ),
    captioner=dict(type="ImplicitCaptioner"),
    neck=dict(type="FeatureProjection", out_channels=512, bottleneck_channels=128),
    head=dict(
        type="OpenVocabMask2FormerHead",
        feat_channels=256,
        out_channels=256,
        num_queries=100,
        num_transformer_feat_level=3,
        pixel_decoder=dict(
            type="mmdet.MSDeformAttnPixelDecoder",
            num_outs=3,
            norm_cfg=dict(type="GN", num_groups=32),
            act_cfg=dict(type="ReLU"),
            encoder=dict(
                num_layers=6,
                layer_cfg=dict(
                    self_attn_cfg=dict(
                        embed_dims=256,
                        num_heads=8,
                        num_levels=3,
                        num_points=4,
                        dropout=0.0,
                        batch_first=True,
                    ),
                    ffn_cfg=dict(
                        embed_dims=256,
                        feedforward_channels=1024,
                        num_fcs=2,
                        ffn_drop=0.0,
                        act_cfg=dict(type="ReLU", inplace=True),
                    ),
                ),
            ),
            positional_encoding=dict(num_feats=128, normalize=True),
        ),
        positional_encoding=dict(num_feats=128, normalize=True),
        transformer_decoder=dict(
            return_intermediate=True,
            num_layers=9,
            layer_cfg=dict(
                self_attn_cfg=dict(embed_dims=256, num_heads=8, dropout=0.0, batch_first=True),
                cross_attn_cfg=dict(embed_dims=256, num_heads=8, dropout=0.0, batch_first=True),
                ffn_cfg=dict(
                    embed_dims=256,
                    feedforward_channels=2048,
                    num_fcs=2,
                    ffn_drop=0.0,
                    act_cfg=dict(type="ReLU", inplace=True),
                ),
            ),
            init_cfg=None,
        ),
        # Losses after every decoder layer. The vocabulary sets the number of classes.
        loss_cls=dict(type="OpenVocabCrossEntropyLoss", loss_weight=2.0, void_weight=0.1),
        loss_mask=dict(
            type="mmdet.CrossEntropyLoss", use_sigmoid=True, reduction="mean", loss_weight=5.0
        ),
        loss_dice=dict(
            type="mmdet.DiceLoss",
            use_sigmoid=True,
            activate=True,
            reduction="mean",
            naive_dice=True,
            eps=1.0,
            loss_weight=5.0,
        ),
        train_cfg=dict(
            num_points=12544,
            oversample_ratio=3.0,
            importance_sample_ratio=0.75,
            assigner=dict(
                type="mmdet.HungarianAssigner",
                match_costs=[
                    dict(type="mmdet.ClassificationCost", weight=2.0),
                    dict(type="mmdet.CrossEntropyLossCost", weight=5.0, use_sigmoid=True),
                    dict(type="mmdet.DiceCost", weight=5.0, pred_act=True, eps=1.0),
                ],
            ),
            sampler=dict(type="mmdet.MaskPseudoSampler"),
        ),
    ),
    test_cfg=dict(overlap_threshold=0.8, topk=100, panoptic=True, semantic=True, instance=True),
)
