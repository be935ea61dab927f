"""Hooks that make training resumable to the bit, and that stop before anything is spoilt."""

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
from mmengine.runner import Runner
from torch import Tensor

from odise_mm.checkpoints.resuming import checkpoints_in, name_pattern, own_checkpoint
from odise_mm.checkpoints.training_state import LAST
from odise_mm.config.checking import better_when
from odise_mm.errors import ConfigError, TrainingError
from odise_mm.registry import HOOKS
from odise_mm.utils.files import remove_leftovers, replacing


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Random numbers of an iteration are a function of (seed, iteration, process).

    What the model draws (points for the losses, dropout) is then the same whether the iterations
    before it ran in this process or before an interruption.
    """

    priority = "VERY_HIGH"

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any | None = None
    ) -> None:
        entropy = np.random.SeedSequence([runner.seed % 2**32, runner.iter, runner.rank])
        seed = int(entropy.generate_state(1)[0])
        torch.manual_seed(seed)  # of all devices
        random.seed(seed)
        np.random.seed(seed)


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """A loss that is not finite stops training before anything is saved."""

    priority = "ABOVE_NORMAL"

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any | None = None,
        outputs: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Raises:
            TrainingError: names the losses, the images and the last checkpoint.
        """
        losses = {k: v for k, v in (outputs or {}).items() if isinstance(v, Tensor)}
        # The sum is not finite if a part is not. To look at one number is one wait for the GPU.
        watched = [losses["loss"]] if "loss" in losses else losses.values()
        if not all(value.isfinite().all() for value in watched):
            broken = [name for name, value in losses.items() if not value.isfinite().all()]
            raise stopped(runner, data_batch, f"{', '.join(broken)} not finite")


def stopped(runner: Runner, data_batch: Any, why: str) -> TrainingError:
    """The error that ends a training whose numbers are broken."""
    images = _images(data_batch)
    parts = [
        f"iteration {runner.iter + 1}: {why}",
        f"images: {', '.join(images)}" if images else "",
        last_checkpoint(runner),
        "go on with --precision bf16 or fp32 instead of fp16, or try a lower learning rate",
    ]
    return TrainingError("; ".join(part for part in parts if part))


def last_checkpoint(runner: Runner) -> str:
    """For messages: what a training that ends now can go on from."""
    last = runner.message_hub.get_info("last_ckpt", None)
    return f"the last good checkpoint is {last}" if last else "no checkpoint was saved yet"


def _images(data_batch: Any) -> list[str]:
    samples = data_batch.get("data_samples", ()) if isinstance(data_batch, Mapping) else ()
    infos: Sequence[Mapping[str, Any]] = [getattr(s, "metainfo", {}) for s in samples]
    return [f"{i.get('img_path', '?')} (id {i.get('img_id', '?')})" for i in infos]


# Under mmengine's name, too: configs that say CheckpointHook get the one that is safe.
@HOOKS.register_module(name=["AtomicCheckpointHook", "CheckpointHook"])
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's hook, but at any moment there is a complete checkpoint to resume from.

    A checkpoint that is due for removal (``max_keep_ckpts``, ``save_best``) goes only when the new
    one is complete and ``last_checkpoint`` names it. Weights that are not finite are not saved.
    Of this package's numbers more is better, so that ``save_best`` of them needs no ``rule``.
    Arguments are those of mmengine's ``CheckpointHook``, for a local ``out_dir``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.backend_args is not None or self.file_client_args is not None:
            raise ValueError("AtomicCheckpointHook writes to local folders: remove backend_args")
        if self.args:  # mmengine would pass them on when the first checkpoint is saved
            raise TypeError(f"AtomicCheckpointHook has no argument {', '.join(self.args)}")
        self._saving: str | None = None

    def _init_rule(self, rules: Sequence[str | None], key_indicators: Sequence[str]) -> None:
        rules = rules if len(rules) == len(key_indicators) else list(rules) * len(key_indicators)
        known = dict(greater_keys=self.greater_keys, less_keys=self.less_keys)
        pairs = zip(rules, key_indicators, strict=True)
        found = [rule or (key != "auto" and better_when(key, known)) or None for rule, key in pairs]
        super()._init_rule(found, list(key_indicators))

    def before_train(self, runner: Runner) -> None:
        """
        Raises:
            TrainingError: the folder has checkpoints of another training, which this one would
                overwrite or remove.
        """
        self._take_over(runner)
        super().before_train(runner)
        if is_main_process():
            for path in remove_leftovers(self.out_dir):
                runner.logger.info(f"removed {path}, left by a save that was interrupted")

    def _take_over(self, runner: Runner) -> None:
        """Of the paths in a resumed state those count that are checkpoints of this folder."""
        folder = Path(runner.work_dir)
        if self.out_dir is not None and self.out_dir != runner.work_dir:  # as mmengine joins them
            folder = Path(self.out_dir) / Path(runner.work_dir.rstrip(os.sep)).name
        plain, best = name_pattern(self.filename_tmpl), name_pattern(self.filename_tmpl, best=True)
        resumed = getattr(runner, "resumed_from", None)
        inside = resumed is not None and resumed.resolve().parent == folder.resolve()
        there = checkpoints_in(folder, (plain, best))
        if there and not inside:
            raise TrainingError(
                f"{folder} has checkpoints of another training ({there[0].name}"
                + (f" and {len(there) - 1} more" if len(there) > 1 else "")
                + "), which this one would overwrite or remove: go on with that one (--resume), "
                "choose another --work-dir, or move them away"
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
        # A folder of this name is none of ours, which are files.
        if is_main_process() and not path.is_dir():
            path.unlink(missing_ok=True)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """
        Raises:
            TrainingError: weights are not finite.
        """
        broken = [k for k, v in checkpoint["state_dict"].items() if not bool(v.isfinite().all())]
        if broken:
            raise stopped(
                runner,
                None,
                f"{len(broken)} weights are not finite (first: {broken[0]}) and are not saved",
            )
        if self._saving is not None:  # who resumes from this file finds it as the last one
            hub = checkpoint["message_hub"]
            hub["runtime_info"]["last_ckpt"] = self._saving
            hub["resumed_keys"]["last_ckpt"] = True

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        kept = list(self.keep_ckpt_ids) if self.max_keep_ckpts > 0 else []
        if step not in kept:
            kept.append(step)
        path = Path(self.out_dir) / self.filename_tmpl.format(step)
        with self._told(runner):
            if self.max_keep_ckpts > 0:
                # Written into the checkpoint with the one that is about to go: should this process
                # be killed in between, mmengine's before_train removes it after resuming.
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
                f"default_hooks.checkpoint.save_best={min(missing)!r}: validation gives no such "
                f"number; it gives {', '.join(metrics)}"
            )
        with self._told(runner), self._late_removals():
            super()._save_best_checkpoint(runner, metrics)

    @contextmanager
    def _told(self, runner: Runner) -> Iterator[None]:
        """A save that fails says what there still is."""
        try:
            yield
        except OSError as err:
            last = runner.message_hub.get_info("last_ckpt", None)
            there = f"{last} is complete" if last else "no checkpoint was saved before"
            raise TrainingError(
                f"iteration {runner.iter + 1}: could not save a checkpoint to {self.out_dir} "
                f"({err}); {there}. Make room there and go on with --resume"
            ) from err
        finally:
            self._saving = None

    @contextmanager
    def _late_removals(self) -> Iterator[None]:
        """What mmengine removes before it saves is removed after it has saved."""
        backend = self.file_backend
        self.file_backend = _LateRemoval(backend)
        try:
            yield
            for path in self.file_backend.removed:
                backend.remove(path)
        finally:
            self.file_backend = backend


class _LateRemoval:
    """A file backend of mmengine's that remembers what is to be removed."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.removed: list[str] = []

    def remove(self, path: str) -> None:
        self.removed.append(path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)
