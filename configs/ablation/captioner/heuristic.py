# CLIP ranks names of places and objects, and a template combines the best ones, after Socratic
# Models (arXiv 2204.00598). Row "heuristic" of the paper's captioner ablation.
# Weights: those of configs/_base_/models/odise.py, which include CLIP ViT-L/14-336 (MIT).
# Differences: the paper's lists and template are not published. This config uses a list of 501
# places, LVIS's 1,203 objects, the best 3 places and 10 objects, and no language model.
_base_ = ["../../_base_/ablation.py"]

model = dict(captioner=dict(type="HeuristicCaptioner"))
