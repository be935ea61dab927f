# The row of configs/ablation/captioner/own_caption.py in miniature.
_base_ = ["../../../_base_/ablation_toy.py"]

captions = dict(captions_file="{{ fileDirname }}/../../real_coco_captions.json")
model = dict(captioner=dict(type="CaptionCaptioner"))
train_dataloader = dict(dataset=captions)
val_dataloader = dict(dataset=captions)
test_dataloader = val_dataloader
