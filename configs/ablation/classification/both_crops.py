# As both.py, but CLIP looks at a crop of every mask's box instead of pooling inside the mask:
# slower, about as good in the paper. A checkpoint of both.py serves as it is.
_base_ = ["../../_base_/ablation.py"]

model = dict(
    classifiers=[
        _base_.model.classifiers[0],
        dict(type="CropCLIPClassifier", template="a photo of a {}."),
    ],
)
