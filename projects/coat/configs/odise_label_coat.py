# ODISE trained with labels. At test time, CLIP's confidence corrects the objectness of masks.
_base_ = ["../../../configs/odise/odise_coco_label.py"]
model = dict(ensemble=dict(type="CoatEnsemble", coat_lambda=0.5))
