"""Preparation of data sets, from what the provider's archive holds; see docs/datasets.md."""
