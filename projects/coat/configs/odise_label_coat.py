# ODISE trained with labels. At test time, CLIP's confidence corrects the objectness of masks.
_base_ = ["../../../configs/odise/odise_coco_label.py"]
custom_imports = dict(imports=["projects.coat.coat_ensemble"])
model = dict(ensemble=dict(type="CoatEnsemble", coat_lambda=0.5))
