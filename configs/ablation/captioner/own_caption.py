# COCO's ground-truth caption of the image, an upper bound for captioners. Not in the paper.
# Weights: those of configs/_base_/models/odise.py.
# In training, it uses the caption whose words are sampled; in testing, the first caption of the
# image. It cannot be tested on datasets without captions (ADE20K).
_base_ = ["../../_base_/ablation.py"]

model = dict(captioner=dict(type="CaptionCaptioner"))
train_dataloader = dict(dataset=dict(captions_file="annotations/captions_train2017.json"))
val_dataloader = dict(dataset=dict(captions_file="annotations/captions_val2017.json"))
test_dataloader = val_dataloader
