# SAM 3 finds the masks of every class name; panoptic inference gives each pixel one of them.
# Weights: facebook/sam3 (SAM License; access must be requested on the hub).
_base_ = ["../../../configs/_base_/proposals.py"]

model = dict(
    proposals=dict(type="Sam3Proposals", weights="facebook/sam3", threshold=0.5),
    clip=None,  # SAM 3 names its masks itself
    classifiers=[],
)
