# ODISE: text-to-image diffusion with Stable Diffusion v1-3, trained on LAION.
_base_ = ["../../_base_/ablation.py"]
