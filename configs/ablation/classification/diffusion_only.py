# Names from the model's own classifier alone, which sees the diffusion model's features. A
# checkpoint of both.py serves as it is: CLIP's prediction has nothing that is trained.
_base_ = ["../../_base_/ablation.py"]

model = dict(classifiers=[_base_.model.classifiers[0]])
