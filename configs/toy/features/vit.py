# A plain ViT of the diffusion model's size (5.5 M parameters), trained from scratch with the head.
# Its images are upscaled by 2, so its patches of 16 pixels cover 8 pixels of the scene.
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
