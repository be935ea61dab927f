# MAFT+, arXiv 2408.00744: FC-CLIP with a fine-tuned CLIP that alone names the masks, by text
# embeddings that are adapted to the image. The head only tells masks from void.
_base_ = ["fcclip.py"]

model = dict(
    backbone=dict(trained=True),
    head=dict(num_queries=100),
    classifiers=[
        dict(type="OpenVocabClassifier", embed_dim=None, null_class=True, template="vild"),
        dict(
            type="PooledCLIPClassifier",
            template="vild",
            text_adapter=dict(type="ContentDependentTransfer", form="panoptic"),
        ),
    ],
    ensemble=dict(alpha=1.0, beta=1.0),
    test_cfg=dict(score_threshold=0.2, overlap_threshold=0.7, instance=False),
)
