default_scope = "odise_mm"
runner_type = "OpenVocabRunner"
log_level = "INFO"
log_processor = dict(by_epoch=False, window_size=50)
# Determines the order of the data, the augmentation, and the sampled points of the losses.
randomness = dict(seed=0)
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
visualizer = dict(
    type="OpenVocabVisualizer",
    vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")],
)
default_hooks = dict(
    # Validation results are logged at their iteration.
    logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=False),
    checkpoint=dict(type="AtomicCheckpointHook", by_epoch=False, interval=4500, max_keep_ckpts=2),
)
load_from = None
# Set to True in configs for tests, to allow a model without weights: it is randomly initialized.
random_weights = False
resume = False
