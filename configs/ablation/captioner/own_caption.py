# COCO's caption of the image: an upper bound for captioners, on data that has captions. Not a
# row of the paper. Weights as configs/_base_/models/odise.py.
# In training the caption whose words are drawn, in testing the first of each image. Datasets
# without captions (ADE20K) cannot be tested.
_base_ = ["../../_base_/ablation.py"]

model = dict(captioner=dict(type="CaptionCaptioner"))
train_dataloader = dict(dataset=dict(captions_file="annotations/captions_train2017.json"))
val_dataloader = dict(dataset=dict(captions_file="annotations/captions_val2017.json"))
test_dataloader = val_dataloader
