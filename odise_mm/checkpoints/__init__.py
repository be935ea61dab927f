"""From files to parameters: read safely, unwrapped, renamed, and checked.

* :mod:`~odise_mm.checkpoints.safe_loading` reads files of weights without running what is in them;
* :mod:`~odise_mm.checkpoints.unwrapping` finds the weights among what other programs save;
* :mod:`~odise_mm.checkpoints.weight_folders` and :mod:`~odise_mm.checkpoints.hub` find the files;
* :mod:`~odise_mm.checkpoints.published` loads trained models, ours and the published ones;
* :mod:`~odise_mm.checkpoints.training_state` and :mod:`~odise_mm.checkpoints.resuming` are for
  training that goes on.
"""
