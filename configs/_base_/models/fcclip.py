# FC-CLIP, arXiv 2308.02487: one frozen convolutional CLIP is the backbone and names the masks.
_base_ = ["odise.py"]

# Published sizes of test images, long edge and short edge, by test set. They are used with
# tools/test.py --datasets, whatever test set the config itself has.
test_scales = dict(default=(1333, 800), cityscapes=(2560, 1024), mapillary=(2560, 1024))

# Color that images are padded with: CLIP's mean, which is zero once it is normalized.
pad_color = [0.48145466, 0.4578275, 0.40821073]

model = dict(
    data_preprocessor=dict(
        type="ColorPaddingPreprocessor", pad_color=pad_color, pad_size_divisor=32
    ),
    vocabulary="coco",
    tile_size=None,
    clip=dict(
        type="FrozenCLIP",
        model="convnext_large_d_320",
        weights="laion2b_s29b_b131k_ft_soup",
    ),
    # The image tower of that CLIP: its four stages are the pyramid.
    backbone=dict(_delete_=True, type="OpenCLIPBackbone"),
    captioner=None,
    neck=None,
    head=dict(num_queries=250, embed_dim=768, embed_norm=False),
    classifiers=[
        dict(type="OpenVocabClassifier", embed_dim=None, null_class=True, template="vild"),
        dict(type="PooledCLIPClassifier", template="vild"),
    ],
    ensemble=dict(type="GeometricEnsemble", alpha=0.4, beta=0.8),
    # As published; it makes a difference on test sets that only have semantic annotations.
    test_cfg=dict(semantic_resize="class_maps"),
)
