# OVRCOAT tested on Mapillary Vistas: short edge 1024, long edge at most 2560; instances are not
# computed.
_base_ = [
    "../_base_/models/ovrcoat.py",
    "../_base_/datasets/mapillary.py",
    "../_base_/default_runtime.py",
]

model = dict(test_cfg=dict(instance=False))
