# ODISE with caption supervision: class-agnostic masks, and grounding of noun phrases of captions.
_base_ = ["odise.py"]

model = dict(
    vocabulary="coco",
    head=dict(objectness=True),
    classifiers=[
        dict(
            type="OpenVocabClassifier",
            embed_dim=256,
            null_class=False,
            template="a photo of a {}.",
        ),
        dict(type="MaskCLIPClassifier", template="a photo of a {}."),
    ],
    grounding=dict(type="GroundingLoss", loss_weight=1.0, softmax="masks"),
    ensemble=dict(type="GeometricEnsemble", alpha=0.35, beta=0.65),
)
