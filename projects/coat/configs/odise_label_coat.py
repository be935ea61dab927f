# ODISE trained with labels; CLIP's confidence corrects which masks count as objects. No training.
_base_ = ["../../../configs/odise/odise_coco_label.py"]
custom_imports = dict(imports=["projects.coat.coat_ensemble"])
model = dict(ensemble=dict(type="CoatEnsemble", coat_lambda=0.5))
