# CLIP ranks names of places and objects, and a template makes a sentence of the best, after
# Socratic Models (arXiv 2204.00598). Paper's captioner ablation, row "heuristic".
# Weights as configs/_base_/models/odise.py: CLIP ViT-L/14-336 (MIT) is there already.
# Deviates: the paper's lists and template are not published. Here: 501 places of our own, LVIS's
# 1,203 objects, the best 3 and 10, no language model.
_base_ = ["../../_base_/ablation.py"]

model = dict(captioner=dict(type="HeuristicCaptioner"))
