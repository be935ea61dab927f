# odise_toy_label with the long schedule: the training of the shipped weights. Linear layers
# are trained with Muon, which needs torch 2.9 or newer. The captioner is frozen after 300
# iterations; from then on, the features of an image are computed once and kept in a temporary file
# in the work directory (8 GB).
_base_ = ["odise_toy_label.py"]

max_iters = 4000
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(optimizer=dict(type="MuonAdamW", muon_lr=1e-2))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.02, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=100, end=max_iters, eta_min_ratio=0.01),
]
custom_hooks = [dict(type="FeatureCacheHook", begin=300)]
