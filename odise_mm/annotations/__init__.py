"""File formats of annotations: COCO's JSON, panoptic and label maps, masks."""
