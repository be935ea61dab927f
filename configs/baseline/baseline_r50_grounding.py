# The same backbone and head, trained with masks and captions as odise_coco_caption is. The
# grounding loss is equation 7 as ODISE's paper writes it: for every mask, a softmax over the words
# of the caption. The published code of ODISE has a softmax over the masks.
_base_ = ["../_base_/baseline.py"]

model = dict(
    classifiers=[
        dict(
            type="OpenVocabClassifier", embed_dim=256, null_class=False, template="a photo of a {}."
        ),
        dict(type="MaskCLIPClassifier", template="a photo of a {}."),
    ],
    grounding=dict(type="GroundingLoss", loss_weight=1.0, softmax="words"),
)
# Written by tools/dataset_converters/coco.py.
train_dataloader = dict(dataset=dict(phrases_file="annotations/phrases_train2017.json"))
