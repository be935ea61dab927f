# The same with an ensemble: FC-CLIP's own classifier also names the base classes.
_base_ = ["maskclippp_convnext_l.py"]

model = dict(ensemble=dict(alpha=0.9, beta=1.0))
