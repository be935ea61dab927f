# Counterpart of configs/ablation/classification/both_crops.py in the toy world.
_base_ = ["../../../_base_/ablation_toy.py"]

model = dict(
    classifiers=[
        _base_.model.classifiers[0],
        dict(type="CropCLIPClassifier", template="a photo of a {}."),
    ],
)
