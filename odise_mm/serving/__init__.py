"""Services over HTTP: an API, and an ML backend of Label Studio.

Whatever a client sends is treated as data from a stranger: :mod:`odise_mm.serving.uploads`.
"""
