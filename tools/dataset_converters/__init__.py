"""Programs that prepare datasets from the providers' archives; see docs/datasets.md."""
