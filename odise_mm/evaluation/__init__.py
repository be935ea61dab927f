"""Metrics: panoptic quality, AP, mIoU, average recall."""
