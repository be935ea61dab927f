# A learned diffusion step. In the paper's study it goes to about 0.
# Weights as configs/_base_/models/odise.py: Stable Diffusion v1-3 (CreativeML OpenRAIL-M).
# Deviates: where the paper's step starts is not known here; no weight decay pulls at it.
_base_ = ["../../_base_/ablation.py"]

model = dict(captioner=dict(learned_step=100.0))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(step_logit=dict(decay_mult=0.0))))
