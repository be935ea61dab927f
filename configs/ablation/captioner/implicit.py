# ODISE itself: CLIP's image embedding, mapped by a trained layer. Paper's captioner ablation, row
# "implicit" (ours); the same model as ../representation/stable_diffusion.py.
# Weights as configs/_base_/models/odise.py: Stable Diffusion v1-3, CLIP ViT-L/14-336 (MIT).
_base_ = ["../../_base_/ablation.py"]
