# ODISE in the toy world (projects/toy_world), trained with labels of the base names. The frozen
# parts are a small latent diffusion model and a small CLIP. They were pre-trained in the toy world,
# and their weights are in the repository.
# Data: python projects/toy_world/generate.py data/toy_world --splits train val
_base_ = ["../_base_/toy_world.py"]

model = dict(
    classifiers=[
        dict(type="OpenVocabClassifier", embed_dim=_base_.width, null_class=True, template="{}"),
        dict(type="MaskCLIPClassifier", template="a photo of a {}."),
    ],
    ensemble=dict(alpha=0.3, beta=0.7),
)
