# ODISE with label supervision: class names and a learned void class.
_base_ = ["odise.py"]

model = dict(
    vocabulary="coco",
    classifiers=[
        dict(type="OpenVocabClassifier", embed_dim=256, null_class=True, template="{}"),
        dict(type="MaskCLIPClassifier", template="a photo of a {}."),
    ],
    ensemble=dict(type="GeometricEnsemble", alpha=0.3, beta=0.7),
)
