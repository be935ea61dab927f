# ODISE trained with captions; CLIP's confidence corrects which masks count as objects. No training.
_base_ = ["../../../configs/odise/odise_coco_caption.py"]
custom_imports = dict(imports=["projects.coat.coat_ensemble"])
model = dict(ensemble=dict(type="CoatEnsemble", coat_lambda=0.5))
