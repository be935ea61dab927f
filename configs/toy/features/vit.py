# A plain ViT of the diffusion model's size (5.5 M parameters) that starts from nothing and is
# trained with the rest. Its patches of 16 pixels are 8 of the scene's: it sees images twice as
# large.
_base_ = ["../odise_toy_label.py"]

model = dict(
    captioner=None,
    backbone=dict(
        _delete_=True,
        type="TimmBackbone",
        model="vit_tiny_patch16_224",
        image_size=256,
        frozen=False,
    ),
    neck=dict(levels=(4, 8, 16, 32)),
)
