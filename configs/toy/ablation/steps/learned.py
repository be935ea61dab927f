# Counterpart of configs/ablation/steps/learned.py in the toy world.
_base_ = ["../../../_base_/ablation_toy.py"]

model = dict(captioner=dict(learned_step=100.0))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(step_logit=dict(decay_mult=0.0))))
