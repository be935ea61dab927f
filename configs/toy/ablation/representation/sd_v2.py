# The row of configs/ablation/representation/sd_v2.py in the toy world.
_base_ = ["../../../_base_/ablation_toy.py"]

levels = (32, 64, 128, 128)
unet = dict(
    sample_size=64,
    block_out_channels=levels,
    cross_attention_dim=64,
    attention_head_dim=(2, 4, 8, 8),
    use_linear_projection=True,
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
)
vae = dict(
    block_out_channels=levels,
    layers_per_block=2,
    latent_channels=4,
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
)
encoder = dict(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    hidden_act="gelu",
)
architecture = dict(unet=unet, vae=vae, text=encoder, pad_token=0)
model = dict(backbone=dict(_delete_=True, type="DiffusionBackbone", arch=architecture))
