"""Converters from the providers' archives to the annotation files that the package reads.

The modules do not import torch at the top level, so that worker processes start in a fraction of a
second.
"""
