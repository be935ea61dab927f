"""Hooks for reproducible iterations, safe checkpoints and early detection of broken losses."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor

from odise_mm.checkpoints.resuming import checkpoints_in, name_pattern, own_checkpoint
from odise_mm.checkpoints.training_state import LAST
from odise_mm.config.checking import better_when
from odise_mm.errors import ConfigError, TrainingError
from odise_mm.models.segmentors.feature_cache import FeatureCache
from odise_mm.registry import HOOKS
from odise_mm.utils.files import remove_leftovers, replacing
from odise_mm.utils.settings import check_number, check_whole


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Seed the random numbers of each iteration with (seed, iteration, process).

    The random numbers that the model draws (points for the losses, dropout) are then the same
    whether the run was interrupted before or not.
    """

    priority = "VERY_HIGH"

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any | None = None
    ) -> None:
        """Seed ``random``, NumPy and torch on all devices."""
        entropy = np.random.SeedSequence([runner.seed % 2**32, runner.iter, runner.rank])
        seed = int(entropy.generate_state(1)[0])
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stop training if the loss is not finite, before anything is saved."""

    priority = "ABOVE_NORMAL"

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any | None = None,
        outputs: Mapping[str, Any] | None = None,
    ) -> None:
        """Check the loss of an iteration.

        Raises:
            TrainingError: the loss is not finite. The message names the losses, the images and the
                last checkpoint.
        """
        losses = {k: v for k, v in (outputs or {}).items() if isinstance(v, Tensor)}
        # The sum is not finite if any part is not; checking only the sum synchronizes with the GPU
        # only once.
        watched = [losses["loss"]] if "loss" in losses else losses.values()
        if not all(value.isfinite().all() for value in watched):
            broken = [name for name, value in losses.items() if not value.isfinite().all()]
            raise stopped(runner, data_batch, f"{', '.join(broken)} not finite")


@HOOKS.register_module()
class FeatureCacheHook(Hook):
    """Freeze the captioner after some iterations, and then compute the features of images once.

    The captioner is the only trained part in front of the frozen backbone. Once it is frozen, too,
    no gradient goes back through the backbone, and the features of an image do not change. They are
    kept in a temporary file, see
    :class:`~odise_mm.models.segmentors.feature_cache.FeatureCache`. This pays off for small images
    that are seen often: one 128 x 128 tile of the toy world takes 0.5 MB, one 512 x 512 tile of
    ODISE 51 MB. The images must not be augmented at random, except by flips. A resumed run computes
    the features again, and with other images beside them their last bits differ.

    Args:
        begin: number of iterations in which the captioner is trained.
        folder: folder of the temporary file. None: the work directory.
        max_gb: size of the file in gigabytes.
    """

    def __init__(self, begin: int = 0, folder: str | None = None, max_gb: float = 20.0) -> None:
        check_whole("FeatureCacheHook.begin", begin, least=0)
        check_number("FeatureCacheHook.max_gb", max_gb)
        self.begin, self.folder, self.max_gb = begin, folder, max_gb
        self._cache: FeatureCache | None = None

    def before_train(self, runner: Runner) -> None:
        """Check that the model has features that can be kept.

        Raises:
            ConfigError: the model is not an OpenVocabSegmentor, or several processes train it
                without ``find_unused_parameters``.
        """
        model = runner.model
        if is_model_wrapper(model):
            if not getattr(model, "find_unused_parameters", False):
                raise ConfigError(
                    "FeatureCacheHook freezes the captioner; with several processes this needs "
                    "model_wrapper_cfg=dict(type='MMDistributedDataParallel', "
                    "find_unused_parameters=True)"
                )
            model = model.module
        if not hasattr(model, "keep_features"):
            raise ConfigError(
                f"FeatureCacheHook needs an OpenVocabSegmentor, not {type(model).__name__}"
            )

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any | None = None
    ) -> None:
        """Start to keep features."""
        if self._cache is None and runner.iter >= self.begin:
            model = runner.model.module if is_model_wrapper(runner.model) else runner.model
            self._cache = FeatureCache(self.folder or runner.work_dir, self.max_gb)
            model.keep_features(self._cache)
            runner.logger.info("the captioner is frozen, features are kept from now on")

    def after_train(self, runner: Runner) -> None:
        """Remove the file."""
        if self._cache is not None:
            model = runner.model.module if is_model_wrapper(runner.model) else runner.model
            model.feature_cache = None
            self._cache.close()
            self._cache = None


def stopped(runner: Runner, data_batch: Any, why: str) -> TrainingError:
    """Build the error that ends a run whose losses or weights are not finite.

    Args:
        runner: the runner.
        data_batch: batch of the iteration, or None.
        why: what is not finite.
    """
    images = _images(data_batch)
    parts = [
        f"iteration {runner.iter + 1}: {why}",
        f"images: {', '.join(images)}" if images else "",
        last_checkpoint(runner),
        "continue with --precision bf16 or fp32 instead of fp16, or lower the learning rate",
    ]
    return TrainingError("; ".join(part for part in parts if part))


def last_checkpoint(runner: Runner) -> str:
    """Describe, for messages, the checkpoint from which a run can be resumed."""
    last = runner.message_hub.get_info("last_ckpt", None)
    return f"the last good checkpoint is {last}" if last else "no checkpoint has been saved yet"


def _images(data_batch: Any) -> list[str]:
    samples = data_batch.get("data_samples", ()) if isinstance(data_batch, Mapping) else ()
    infos: Sequence[Mapping[str, Any]] = [getattr(s, "metainfo", {}) for s in samples]
    return [f"{i.get('img_path', '?')} (id {i.get('img_id', '?')})" for i in infos]


# Also registered under mmengine's name, so that existing configs use the safe hook.
@HOOKS.register_module(name=["AtomicCheckpointHook", "CheckpointHook"])
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` that keeps a complete checkpoint available at all times.

    An old checkpoint (``max_keep_ckpts``, ``save_best``) is removed only after the new one is
    complete and ``last_checkpoint`` refers to it. Weights that are not finite are not saved. For
    this package's metrics higher is better, so ``save_best`` needs no ``rule``.

    The arguments are those of mmengine's ``CheckpointHook``, but ``out_dir`` must be local.

    Raises:
        ValueError: ``backend_args`` or ``file_client_args`` is set.
        TypeError: an argument is unknown.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.backend_args is not None or self.file_client_args is not None:
            raise ValueError("AtomicCheckpointHook writes to local folders: remove backend_args")
        if self.args:  # mmengine would use them only when it saves the first checkpoint
            raise TypeError(f"AtomicCheckpointHook: unknown argument {', '.join(self.args)}")
        self._saving: str | None = None

    def _init_rule(self, rules: Sequence[str | None], key_indicators: Sequence[str]) -> None:
        rules = rules if len(rules) == len(key_indicators) else list(rules) * len(key_indicators)
        known = dict(greater_keys=self.greater_keys, less_keys=self.less_keys)
        pairs = zip(rules, key_indicators, strict=True)
        found = [rule or (key != "auto" and better_when(key, known)) or None for rule, key in pairs]
        super()._init_rule(found, list(key_indicators))

    def before_train(self, runner: Runner) -> None:
        """Check the folder and remove incomplete files of interrupted saves.

        Raises:
            TrainingError: the folder has checkpoints of another run, which this one would overwrite
                or remove.
        """
        self._adopt_checkpoints(runner)
        super().before_train(runner)
        if is_main_process():
            for path in remove_leftovers(self.out_dir):
                runner.logger.info(f"removed {path}, which an interrupted save left behind")

    def _adopt_checkpoints(self, runner: Runner) -> None:
        """Keep only those checkpoint paths of a resumed state that lie in this folder.

        Raises:
            TrainingError: the folder has checkpoints of another run.
        """
        folder = Path(runner.work_dir)
        if self.out_dir is not None and self.out_dir != runner.work_dir:  # as mmengine joins them
            folder = Path(self.out_dir) / Path(runner.work_dir.rstrip(os.sep)).name
        plain, best = name_pattern(self.filename_tmpl), name_pattern(self.filename_tmpl, best=True)
        resumed = getattr(runner, "resumed_from", None)
        inside = resumed is not None and resumed.resolve().parent == folder.resolve()
        there = checkpoints_in(folder, (plain, best))
        if there and not inside:
            raise TrainingError(
                f"{folder} has checkpoints of another run ({there[0].name}"
                + (f" and {len(there) - 1} more" if len(there) > 1 else "")
                + "), which this run would overwrite or remove: continue that run (--resume), "
                "choose another --work-dir, or move the checkpoints elsewhere"
            )
        hub = runner.message_hub
        for key in [key for key in hub.runtime_info if key.split("_ckpt")[0] in ("last", "best")]:
            pattern = plain if key == "last_ckpt" else best
            own = own_checkpoint(hub.get_info(key), folder, pattern) if inside else None
            hub.runtime_info.pop(key)
            if own is not None:
                hub.update_info(key, str(own))
        for key in [key for key in hub.runtime_info if key.startswith("best_score")]:
            if not isinstance(hub.get_info(key), (int, float)):
                hub.runtime_info.pop(key)
        if "keep_ckpt_ids" in hub.runtime_info:
            given = hub.get_info("keep_ckpt_ids")
            given = given if inside and isinstance(given, (list, tuple)) else []
            kept = [step for step in given if type(step) is int and step >= 0]
            while len(kept) > self.max_keep_ckpts > 0:
                self._remove(folder / self.filename_tmpl.format(kept.pop(0)))
            hub.update_info("keep_ckpt_ids", kept)

    def _remove(self, path: Path) -> None:
        # Checkpoints are files; a folder of this name is something else.
        if is_main_process() and not path.is_dir():
            path.unlink(missing_ok=True)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Check the weights, and record the file as the last checkpoint.

        Raises:
            TrainingError: weights are not finite.
        """
        broken = [k for k, v in checkpoint["state_dict"].items() if not bool(v.isfinite().all())]
        if broken:
            raise stopped(
                runner,
                None,
                f"{len(broken)} weights are not finite (first: {broken[0]}) and were not saved",
            )
        if self._saving is not None:  # the state that is resumed from this file
            hub = checkpoint["message_hub"]
            hub["runtime_info"]["last_ckpt"] = self._saving
            hub["resumed_keys"]["last_ckpt"] = True

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        kept = list(self.keep_ckpt_ids) if self.max_keep_ckpts > 0 else []
        if step not in kept:
            kept.append(step)
        path = Path(self.out_dir) / self.filename_tmpl.format(step)
        with self._saving_errors(runner):
            if self.max_keep_ckpts > 0:
                # The list in the checkpoint still includes the file that is removed next. If this
                # process is killed in between, mmengine's before_train removes it after resuming.
                runner.message_hub.update_info("keep_ckpt_ids", kept)
            self._saving = str(path)
            runner.save_checkpoint(
                self.out_dir,
                path.name,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
            )
            if is_main_process():
                with replacing(Path(runner.work_dir) / LAST) as temporary:
                    temporary.write_text(str(path), encoding="utf-8")
        self.last_ckpt = str(path)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        if self.max_keep_ckpts > 0:
            while len(kept) > self.max_keep_ckpts:
                self._remove(Path(self.out_dir) / self.filename_tmpl.format(kept.pop(0)))
            self.keep_ckpt_ids.clear()
            self.keep_ckpt_ids.extend(kept)
            runner.message_hub.update_info("keep_ckpt_ids", kept)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, float]) -> None:
        missing = {*(self.key_indicators if self.save_best else ())} - {*metrics, "auto"}
        if missing:
            raise ConfigError(
                f"default_hooks.checkpoint.save_best={min(missing)!r}: validation has no such "
                f"metric; choose from {', '.join(metrics)}"
            )
        with self._saving_errors(runner), self._late_removals():
            super()._save_best_checkpoint(runner, metrics)

    @contextmanager
    def _saving_errors(self, runner: Runner) -> Iterator[None]:
        """Add the last complete checkpoint to the error of a failed save."""
        try:
            yield
        except OSError as err:
            last = runner.message_hub.get_info("last_ckpt", None)
            kept = f"{last} is complete" if last else "no checkpoint was saved before"
            raise TrainingError(
                f"iteration {runner.iter + 1}: could not save a checkpoint to {self.out_dir} "
                f"({err}); {kept}. Free some disk space and continue with --resume"
            ) from err
        finally:
            self._saving = None

    @contextmanager
    def _late_removals(self) -> Iterator[None]:
        """Delay the removals that mmengine does before saving until the new file is complete."""
        backend = self.file_backend
        self.file_backend = _LateRemoval(backend)
        try:
            yield
            for path in self.file_backend.removed:
                backend.remove(path)
        finally:
            self.file_backend = backend


class _LateRemoval:
    """Proxy of mmengine's file backend that collects removals instead of executing them."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.removed: list[str] = []

    def remove(self, path: str) -> None:
        self.removed.append(path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)
