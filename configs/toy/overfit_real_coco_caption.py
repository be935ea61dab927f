# Overfit the same two images with class-agnostic masks and captions; the scores are class-agnostic.
# The captions were written for this purpose, see real_coco_phrases.json.
_base_ = ["./overfit_real_coco.py"]

model = dict(
    head=dict(objectness=True),
    classifiers=[
        dict(
            type="OpenVocabClassifier",
            embed_dim=_base_.width,
            null_class=False,
            template="a photo of a {}.",
        ),
    ],
    grounding=dict(type="GroundingLoss", loss_weight=1.0, softmax="masks"),
)

train_dataloader = dict(dataset=dict(phrases_file="{{ fileDirname }}/real_coco_phrases.json"))
val_dataloader = dict(dataset=dict(class_agnostic=True))
test_dataloader = val_dataloader
