# A learned diffusion step. In the paper's study, it converges to about 0.
# Weights: those of configs/_base_/models/odise.py, Stable Diffusion v1-3 (CreativeML OpenRAIL-M).
# Differences: the paper does not specify the initial step. It has no weight decay here.
_base_ = ["../../_base_/ablation.py"]

model = dict(captioner=dict(learned_step=100.0))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(step_logit=dict(decay_mult=0.0))))
