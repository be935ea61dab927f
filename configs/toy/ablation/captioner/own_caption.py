# Counterpart of configs/ablation/captioner/own_caption.py in the toy world.
_base_ = ["../../../_base_/ablation_toy.py"]

model = dict(captioner=dict(type="CaptionCaptioner"))
train_dataloader = dict(dataset=dict(captions_file="annotations/captions_train2017.json"))
val_dataloader = dict(dataset=dict(captions_file="annotations/captions_val2017.json"))
test_dataloader = val_dataloader
