# ODISE in the toy world, trained with class-agnostic masks and captions that tell base names only.
_base_ = ["../_base_/toy_world_caption.py"]
