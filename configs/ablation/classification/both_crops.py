# Like both.py, but CLIP classifies a crop of every mask's box instead of pooling inside the mask.
# This is slower, and about as good in the paper. It uses the checkpoint of both.py.
_base_ = ["../../_base_/ablation.py"]

model = dict(
    classifiers=[
        _base_.model.classifiers[0],
        dict(type="CropCLIPClassifier", template="a photo of a {}."),
    ],
)
