# MaskCLIP++, arXiv 2412.11464: a fine-tuned CLIP that names masks of another segmentor. Configs add
# `proposals`, which is where the masks come from.

# Color that images are padded with: CLIP's mean, which is zero once it is normalized.
clip_mean = [0.48145466, 0.4578275, 0.40821073]

maskclippp = dict(
    type="ProposalSegmentor",
    data_preprocessor=dict(
        type="ColorPaddingPreprocessor",
        mean=[0.0, 0.0, 0.0],
        std=[255.0, 255.0, 255.0],
        bgr_to_rgb=True,
        pad_color=clip_mean,
        pad_size_divisor=32,
    ),
    vocabulary="coco",
    # The image tower is that of the checkpoint; the text tower is the original one.
    clip=dict(
        type="FrozenCLIP",
        model="convnext_large_d_320",
        weights="laion2b_s29b_b131k_ft_soup",
        tuned_tower=True,
    ),
    classifiers=[
        dict(
            type="SoftMaskCLIPClassifier",
            template="vild",
            text_adapter=dict(type="PseudoText"),
            short_side=640,
        )
    ],
    # The source's classifier only predicts void.
    ensemble=dict(type="GeometricEnsemble", alpha=1.0, beta=1.0),
    test_cfg=dict(mask_resize="probability"),
)

# Short edge 800, long edge at most 2560. The parts resize the image again.
image_scale = (2560, 800)
