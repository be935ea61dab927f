# OVRCOAT with CLIP ConvNeXt-L (published weights: ovrcoat.pth).
# OVRCOAT, arXiv 2603.21386: FC-CLIP with a fine-tuned CLIP, whose confidence corrects objectness.
_base_ = ["../fcclip/fcclip_ade20k.py"]

model = dict(
    ensemble=dict(type="CoatEnsemble", coat_lambda=0.5),
    # Scores of instances as published: the mean logit of a mask, not its mean probability.
    test_cfg=dict(overlap_threshold=0.7, instance_quality="logit"),
)
