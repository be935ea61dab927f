"""From the archives of datasets to the annotation files that the package reads.

Nothing here imports torch when it is imported: worker processes start in a fraction of a second.
"""
