# The row of configs/ablation/classification/both.py in miniature.
_base_ = ["../../../_base_/ablation_toy.py"]

model = dict(
    classifiers=[
        _base_.model.classifiers[0],
        dict(type="MaskCLIPClassifier", template="a photo of a {}."),
    ],
)
