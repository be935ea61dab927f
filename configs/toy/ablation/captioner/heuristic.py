# Counterpart of configs/ablation/captioner/heuristic.py in the toy world, with its names.
_base_ = ["../../../_base_/ablation_toy.py"]

stuff = ["sky", "grass", "water", "sand", "snow", "brick wall", "wood", "gravel"]
model = dict(
    captioner=dict(
        type="HeuristicCaptioner",
        places=stuff,
        objects=_base_.base_names,
        num_places=1,
        num_objects=2,
        template="{objects} on the {places}",
    )
)
