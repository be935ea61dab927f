# The schedule of Mask2Former and FC-CLIP: 50 epochs of COCO at 16 images per iteration.
_base_ = ["coco_92k.py"]

max_iters = 368750

param_scheduler = [
    # At 8/9 and 26/27 of the training run.
    dict(type="MultiStepLR", milestones=[327778, 355092], gamma=0.1, by_epoch=False),
]
train_cfg = dict(max_iters=max_iters)
auto_scale_lr = dict(base_batch_size=16)

optim_wrapper = dict(
    paramwise_cfg=dict(
        _delete_=True,
        # No weight decay for norms and embeddings, but for biases, the logit scale and the level
        # encoding of the pixel decoder, as in build_optimizer of train_net.py and
        # WEIGHT_DECAY_EMBED of fcclip/config.py in the published code.
        norm_decay_mult=0.0,
        custom_keys=dict(
            query_feat=dict(decay_mult=0.0),
            query_embed=dict(decay_mult=0.0),
            level_embed=dict(decay_mult=0.0),
            null_embedding=dict(decay_mult=0.0),
        ),
    ),
)
