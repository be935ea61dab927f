# OVRCOAT, arXiv 2603.21386: FC-CLIP with a fine-tuned CLIP, whose confidence corrects objectness.
_base_ = ["fcclip.py"]

model = dict(
    backbone=dict(trained=True),
    head=dict(
        # FC-CLIP: 5.
        loss_mask=dict(loss_weight=6.0),
        train_cfg=dict(
            assigner=dict(
                match_costs=[
                    dict(type="mmdet.ClassificationCost", weight=2.0),
                    dict(type="mmdet.CrossEntropyLossCost", weight=6.0, use_sigmoid=True),
                    dict(type="mmdet.DiceCost", weight=5.0, pred_act=True, eps=1.0),
                ],
            ),
        ),
    ),
    ensemble=dict(type="CoatEnsemble", coat_lambda=0.5),
    # Scores of instances as published: the mean logit of a mask, not its mean probability.
    test_cfg=dict(overlap_threshold=0.7, instance_quality="logit"),
)
