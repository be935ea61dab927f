# Masks from elsewhere, named by CLIP alone with mask pooling (MaskCLIP, arXiv 2208.08984), and
# merged by panoptic inference. Configs add the source of the masks, model.proposals.
_base_ = ["datasets/ade20k.py", "default_runtime.py"]
custom_imports = dict(imports=["odise_mm.models"], allow_failed_imports=False)

# No part is trained: all weights are named here.
needs_checkpoint = False

model = dict(
    type="ProposalSegmentor",
    # From uint8 BGR to RGB in [0, 1].
    data_preprocessor=dict(
        type="mmdet.DetDataPreprocessor",
        mean=[0.0, 0.0, 0.0],
        std=[255.0, 255.0, 255.0],
        bgr_to_rgb=True,
        pad_size_divisor=1,
    ),
    vocabulary="coco",
    clip=dict(type="FrozenCLIP", model="ViT-L-14-336-quickgelu", weights="openai"),
    classifiers=[dict(type="MaskCLIPClassifier", template="a photo of a {}.")],
    # The sources have already selected their masks by score.
    ensemble=dict(type="GeometricEnsemble", drop_void=False),
    test_cfg=dict(overlap_threshold=0.8, topk=100, panoptic=True, semantic=True, instance=True),
)

# Images keep their size: mask sources and CLIP resize them by themselves.
test_pipeline = [_base_.test_pipeline[0], _base_.test_pipeline[-1]]
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
