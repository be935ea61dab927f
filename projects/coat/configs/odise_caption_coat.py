# ODISE trained with captions. At test time, CLIP's confidence corrects the objectness of masks.
_base_ = ["../../../configs/odise/odise_coco_caption.py"]
model = dict(ensemble=dict(type="CoatEnsemble", coat_lambda=0.5))
