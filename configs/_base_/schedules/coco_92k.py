# The published schedule: 50 epochs of COCO with 64 images per iteration.
max_iters = 92188

optim_wrapper = dict(
    type="AmpOptimWrapper",
    dtype="float16",
    loss_scale="dynamic",
    # Leaves out frozen parameters, so they are not part of optimizer state and gradient norm.
    constructor="TrainedParametersConstructor",
    optimizer=dict(type="AdamW", lr=1e-4, weight_decay=0.05),
    # No weight decay for norms and biases (attention calls its bias in_proj_bias).
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys=dict(in_proj_bias=dict(decay_mult=0.0)),
    ),
    clip_grad=dict(max_norm=0.01, norm_type=2),
)
param_scheduler = [
    # From 0.067 to 1 in 250 steps; mmengine counts values, and there is one more than steps.
    dict(type="LinearLR", start_factor=0.067, begin=0, end=251, by_epoch=False),
    # At 8/9 and 26/27 of the training run.
    dict(type="MultiStepLR", milestones=[81945, 88773], gamma=0.1, by_epoch=False),
]
train_cfg = dict(type="OpenVocabTrainLoop", max_iters=max_iters, val_interval=4500)
auto_scale_lr = dict(base_batch_size=64, enable=False)
