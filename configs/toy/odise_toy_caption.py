# ODISE in the toy world, trained with class-agnostic masks and captions with base names only.
_base_ = ["../_base_/toy_world_caption.py"]
