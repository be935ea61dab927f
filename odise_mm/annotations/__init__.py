"""Annotation file formats: COCO JSON, panoptic maps, label maps and masks."""
