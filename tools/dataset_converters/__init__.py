"""Preparation of datasets, from what the provider's archive holds; see docs/datasets.md."""
