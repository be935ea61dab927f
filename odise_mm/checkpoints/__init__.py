"""Reading, writing and checking of checkpoints.

* :mod:`~odise_mm.checkpoints.safe_loading` reads weights files without running code from them;
* :mod:`~odise_mm.checkpoints.unwrapping` finds the weights in what other programs save;
* :mod:`~odise_mm.checkpoints.weight_folders` and :mod:`~odise_mm.checkpoints.hub` find the files;
* :mod:`~odise_mm.checkpoints.published` loads trained models, ours and the published ones;
* :mod:`~odise_mm.checkpoints.training_state` and :mod:`~odise_mm.checkpoints.resuming` are used to
  resume training runs.
"""
