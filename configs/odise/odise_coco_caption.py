# ODISE trained with COCO captions and class-agnostic masks (published: odise_caption_coco_50e).
_base_ = ["../_base_/default_runtime.py", "../_base_/models/odise.py"]

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
    fusion=dict(type="GeometricEnsemble", alpha=0.35, beta=0.65, train_vocabulary="coco"),
)
