# Only the model's own classifier, based on the diffusion features, classifies the masks. It uses
# the checkpoint of both.py, because the CLIP classifier has no trained parameters.
_base_ = ["../../_base_/ablation.py"]

model = dict(classifiers=[_base_.model.classifiers[0]])
