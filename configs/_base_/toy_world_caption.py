# Caption supervision in the toy world: class-agnostic masks, and captions with base names only.
_base_ = ["toy_world.py"]

model = dict(
    head=dict(objectness=True),
    classifiers=[
        dict(
            type="OpenVocabClassifier",
            embed_dim=_base_.width,
            null_class=False,
            template="a photo of a {}.",
        ),
        dict(type="MaskCLIPClassifier", template="a photo of a {}."),
    ],
    grounding=dict(type="GroundingLoss", loss_weight=1.0, softmax="masks"),
    ensemble=dict(alpha=0.35, beta=0.65),
)
# Written by projects/toy_world/generate.py.
train_dataloader = dict(dataset=dict(phrases_file="annotations/phrases_train2017.json"))
