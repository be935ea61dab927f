# ODISE: CLIP's image embedding, mapped by a trained layer. Row "implicit" (ours) of the paper's
# captioner ablation; the same model as ../representation/stable_diffusion.py.
# Weights: those of configs/_base_/models/odise.py, Stable Diffusion v1-3, CLIP ViT-L/14-336 (MIT).
_base_ = ["../../_base_/ablation.py"]
