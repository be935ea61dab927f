"""mmengine's runner with checked configs and safe checkpoints."""

from __future__ import annotations

import copy
import logging
import os
import traceback
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import torch
from mmengine.config import Config
from mmengine.dist import is_distributed, is_main_process
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from torch import nn

from odise_mm.checkpoints.published import (
    clip_weights,
    expected_tensors,
    load_weights,
    use_contained_clip,
)
from odise_mm.checkpoints.resuming import ADVICE, RECORD, describe_training, differences_of_training
from odise_mm.checkpoints.safe_loading import differences
from odise_mm.checkpoints.training_names import NOTE, note_of, train_vocabulary
from odise_mm.checkpoints.training_state import latest_checkpoint, read_training_state
from odise_mm.config.building import config_errors
from odise_mm.config.changing import complete_config, unused_pipelines
from odise_mm.config.checking import check_config
from odise_mm.datasets.seeding import build_seeded
from odise_mm.engine.console import quiet_console
from odise_mm.engine.loops import unwrapped
from odise_mm.errors import CheckpointError, ConfigError, OdiseError
from odise_mm.registry import RUNNERS
from odise_mm.utils.display import printable
from odise_mm.utils.files import replacing
from odise_mm.vocabulary import Vocabulary


@RUNNERS.register_module()
class OpenVocabRunner(Runner):
    """mmengine's runner for this package's models and datasets.

    * Configs are completed and checked before anything is built, see
      :mod:`odise_mm.config.checking`.
    * ``load_from`` accepts this package's weights and published files, which must fit the
      model exactly. ``resume`` only accepts checkpoints of a run with the same config.
    * Checkpoints contain the trained parameters, the state of the optimizer and the schedules, and
      the curves. They are written atomically.
    * ``log_level`` is the level of the console, which always shows losses. The log file has all
      messages from INFO on, see :mod:`odise_mm.engine.console`.
    * Iterations are reproducible, and losses are checked, see :mod:`odise_mm.engine.hooks`.
    """

    _runners_of_second: ClassVar[Counter[str]] = Counter()
    _state: dict[str, Any] | None = None  # passed from resume() to load_checkpoint()
    resumed_from: Path | None = None
    """Checkpoint from which the run was resumed."""

    @classmethod
    def from_cfg(cls, cfg: Config) -> OpenVocabRunner:
        """Build a runner from a config.

        Raises:
            ConfigError, DatasetError, DeviceError: see
                :func:`odise_mm.config.checking.check_config`; or a component has invalid arguments.
            CheckpointError: the run cannot be resumed from the checkpoint.
        """
        cfg = complete_config(cfg)
        check_config(cfg)
        if cfg.get("resume"):
            _take_over_seed(cfg)
        with config_errors(cfg):
            runner = super().from_cfg(cfg)
        runner._warn_of_pipelines(cfg)
        return runner

    def _warn_of_pipelines(self, cfg: Config) -> None:
        for line in unused_pipelines(cfg):
            self.logger.warning(line)

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        """Extend mmengine's method: use gloo without GPUs, and a unique name per runner.

        mmengine identifies logger, message hub and visualizer by the second in which the runner is
        built. A second runner built in the same second would write into the log file of the first,
        so its name gets a suffix.
        """
        if self.distributed and not is_distributed() and not torch.cuda.is_available():
            torch.distributed.init_process_group("gloo")
        super().setup_env(env_cfg)
        second = self._timestamp
        self._runners_of_second[second] += 1
        if self._runners_of_second[second] > 1:
            self._timestamp = f"{second}_{self._runners_of_second[second]}"

    def build_logger(
        self, log_level: int | str = "INFO", log_file: str | None = None, **kwargs: Any
    ) -> MMLogger:
        """Extend mmengine's method: details go to the log file, losses also to the console."""
        level = logging.getLevelName(log_level) if isinstance(log_level, str) else log_level
        if not isinstance(level, int):
            raise ConfigError(
                f"log_level={log_level!r}: must be DEBUG, INFO, WARNING, ERROR or CRITICAL"
            )
        logger = super().build_logger(min(level, logging.INFO), log_file, **kwargs)
        quiet_console(logger, level)
        return logger

    def dump_config(self) -> None:
        """Extend mmengine's method: do not overwrite a config that lies in the work directory.

        Changes made to it for this run are in the log and in ``vis_data/config.py``.
        """
        source = self.cfg.filename
        target = Path(self.work_dir, Path(source).name) if source else None
        if target is None or not (target.exists() and target.samefile(source)):
            super().dump_config()

    _clip_from_checkpoint = False  # the CLIP is that of a checkpoint, not that of the config

    def build_model(self, model: nn.Module | dict[str, Any]) -> nn.Module:
        """Extend mmengine's method: use the CLIP of the checkpoint, if that contains one.

        The weights of CLIP that the config names are then not needed. ``self.cfg`` still names
        them, so the checkpoints of this run contain the CLIP, too.
        """
        path = self._load_from
        if path is None and self._resume:
            path = latest_checkpoint(self.work_dir)
        if path is not None and isinstance(model, dict):
            cfg = Config(dict(model=copy.deepcopy(model)))
            self._clip_from_checkpoint = use_contained_clip(cfg.model, path)
            model = cfg.model
        return super().build_model(model)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Extend mmengine's method to CPUs."""
        if self.distributed and not torch.cuda.is_available():
            defaults = dict(broadcast_buffers=False, find_unused_parameters=False, device_ids=None)
            model_wrapper_cfg = {**defaults, **(model_wrapper_cfg or {})}
        return super().wrap_model(model_wrapper_cfg, model)

    def register_default_hooks(self, hooks: dict[str, Any] | None = None) -> None:
        """Extend mmengine's method by the hooks for seeded iterations and finite losses."""
        own = dict(
            iteration_seed=dict(type="IterationSeedHook"),
            finite_loss=dict(type="FiniteLossHook"),
        )
        super().register_default_hooks({**own, **(hooks or {})})

    @staticmethod
    def build_dataloader(
        dataloader: Any, seed: int | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Extend mmengine's method: items accept seeds, whatever the class of their dataset."""
        if isinstance(dataloader, dict) and isinstance(dataloader.get("dataset"), dict):
            cfg = dict(type=build_seeded, dataset=dataloader["dataset"])
            dataloader = {**dataloader, "dataset": cfg}
        return Runner.build_dataloader(dataloader, seed, *args, **kwargs)

    def build_train_loop(self, loop: Any) -> Any:
        """Extend mmengine's method by errors that name the setting."""
        with config_errors(self.cfg):
            return super().build_train_loop(loop)

    def build_val_loop(self, loop: Any) -> Any:
        """Extend mmengine's method by errors that name the setting."""
        with config_errors(self.cfg):
            return super().build_val_loop(loop)

    def build_test_loop(self, loop: Any) -> Any:
        """Extend mmengine's method by errors that name the setting."""
        with config_errors(self.cfg):
            return super().build_test_loop(loop)

    def build_optim_wrapper(self, optim_wrapper: Any) -> Any:
        """Extend mmengine's method by errors that name the setting."""
        with config_errors(self.cfg):
            return super().build_optim_wrapper(optim_wrapper)

    def build_param_scheduler(self, scheduler: Any) -> Any:
        """Extend mmengine's method by errors that name the setting."""
        with config_errors(self.cfg):
            return super().build_param_scheduler(scheduler)

    def scale_lr(self, optim_wrapper: Any, auto_scale_lr: dict[str, Any] | None = None) -> None:
        """Extend mmengine's method: log the batch size and the learning rate."""
        super().scale_lr(optim_wrapper, auto_scale_lr)
        batch = self.train_loop.total_batch if hasattr(self.train_loop, "total_batch") else None
        if batch is None:
            return
        rates = sorted({group["lr"] for group in optim_wrapper.optimizer.param_groups})
        accumulated = getattr(optim_wrapper, "_accumulative_counts", 1)
        self.logger.info(
            f"{batch} images per iteration ({batch // self.world_size} in each of "
            f"{self.world_size} processes), an update every {accumulated} iterations, "
            f"learning rate {', '.join(f'{rate:g}' for rate in rates)}"
        )
        images = len(self.train_dataloader.dataset)
        if images < batch:
            self.logger.warning(
                f"an iteration uses {batch} images, but the dataset has only {images}: images "
                "repeat within an iteration"
            )
        base = (auto_scale_lr or {}).get("base_batch_size")
        if base not in (None, batch * accumulated) and not auto_scale_lr.get("enable", False):
            self.logger.warning(
                f"the learning rate was chosen for {base} images per update, but this run uses "
                f"{batch * accumulated}: scale it with --auto-scale-lr, or set "
                f"train_dataloader.batch_size so that batch x {self.world_size} processes = {base}"
            )

    def test_on(self, cfg: Config) -> dict[str, float]:
        """Test the current model on the test set of another config.

        Afterwards, ``test_loop`` is that of this test set.

        Returns:
            Name of the metric -> value.

        Raises:
            ConfigError, DatasetError, DeviceError: see :meth:`from_cfg`.
        """
        cfg = complete_config(cfg)
        check_config(cfg)
        self._warn_of_pipelines(cfg)
        self._test_dataloader = cfg.test_dataloader
        self._test_evaluator = cfg.test_evaluator
        self._test_loop = cfg.test_cfg
        return self.test()

    def load_or_resume(self) -> None:
        """Extend mmengine's method: start from the beginning if there is no checkpoint."""
        self.resumed_from = None
        if self._resume and self._load_from is None and not self._has_loaded:
            self._load_from = latest_checkpoint(self.work_dir)
            if self._load_from is None:
                self.logger.info(
                    f"{self.work_dir} has no checkpoint to resume from: starting at iteration 0"
                )
                self._resume = False
        super().load_or_resume()

    def resume(
        self,
        filename: str | os.PathLike[str],
        resume_optimizer: bool = True,
        resume_param_scheduler: bool = True,
        map_location: Any = "cpu",
    ) -> None:
        """Resume a run.

        Raises:
            CheckpointError: the file has no training state, or was made with another config (images
                per iteration, learning rate, data, ...). The message lists the differences.
        """
        self._state = read_training_state(filename)
        self.resumed_from = Path(filename)
        try:
            super().resume(
                os.fspath(filename), resume_optimizer, resume_param_scheduler, map_location
            )
        except OdiseError:
            raise
        except (KeyError, ValueError, RuntimeError) as err:
            raise CheckpointError(
                f"{filename} was made with another optimizer, schedule or precision ({err}): "
                "resume with the config it was trained with, or start from its weights (load_from)"
            ) from err

    def load_checkpoint(
        self, filename: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> dict[str, Any] | None:
        """Load weights of this package (.pth, .safetensors) or a published file.

        The weights must fit the model exactly.

        Returns:
            The training state if :meth:`resume` calls it, else None.

        Raises:
            CheckpointError: the file is of another model. The message names the first differences.
        """
        model, state = unwrapped(self.model), self._state
        self._state = None
        if state is None:
            load_weights(model, filename)
        else:
            self._check_state(filename, state)
            self.call_hook("after_load_checkpoint", checkpoint=state)
            model.load_state_dict(state["state_dict"])
        self._has_loaded = True
        self.logger.info(f"loaded {filename}")
        return state

    def _check_state(self, filename: str | os.PathLike[str], state: dict[str, Any]) -> None:
        weights = state["state_dict"]
        wrong = differences(weights, expected_tensors(unwrapped(self.model), weights))
        if wrong:
            raise CheckpointError(f"{filename} was not made with this config: {wrong}; {ADVICE}")
        names = getattr(self.train_dataloader.dataset, "metainfo", None)
        if state["meta"].get("dataset_meta") != plain(names):
            raise CheckpointError(
                f"{filename} was trained on other class names than the training dataset's: {ADVICE}"
            )
        done, wanted = state["meta"]["iter"], self.train_loop.max_iters
        if done > wanted:
            raise CheckpointError(
                f"{filename} is from iteration {printable(done, 30)}, but train_cfg.max_iters is "
                f"{wanted}: increase it to train on, or start from the weights with load_from"
            )
        forbidding, ignored = differences_of_training(state, self)
        if forbidding:
            raise CheckpointError(
                f"{filename} cannot be resumed with this config, because it was made with other "
                f"settings ({'; '.join(forbidding)}): {ADVICE}"
            )
        for text in ignored:
            self.logger.warning(f"{filename}: {text}")
        state["meta"]["dataset_meta"] = names  # mmengine compares it

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        """Extend mmengine's method: write the file atomically.

        Raises:
            OSError: the file cannot be written, e.g. because the disk is full. An older file of
                this name is kept.
        """
        if is_main_process():
            with replacing(Path(out_dir) / filename) as temporary:
                super().save_checkpoint(str(temporary.parent), temporary.name, *args, **kwargs)

    failed_hooks: dict[str, Exception] | None = None
    """Errors of hooks by class name. The evaluation loops set a dictionary to collect them, so that
    the remaining hooks are still called; None raises errors at once."""

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """Extend mmengine's method: simplify the content of checkpoints, collect errors.

        Checkpoints get only plain types, so that they can be read without running code.
        """
        if fn_name == "before_save_checkpoint":
            checkpoint = kwargs["checkpoint"]
            if self._clip_from_checkpoint:
                clip = clip_weights(unwrapped(self.model)).items()
                weights = {name: value.cpu() for name, value in clip}
                checkpoint["state_dict"] = weights | checkpoint["state_dict"]
            trained_with = train_vocabulary(unwrapped(self.model))
            if trained_with is not None:
                checkpoint["meta"][NOTE] = note_of(trained_with)
            checkpoint["meta"][RECORD] = describe_training(self)
            for holder in (checkpoint["meta"], checkpoint["message_hub"]["runtime_info"]):
                if "dataset_meta" in holder:
                    holder["dataset_meta"] = plain(holder["dataset_meta"])
        if self.failed_hooks is None or fn_name not in _AFTER_EVALUATION:
            super().call_hook(fn_name, **kwargs)
            return
        for hook in self._hooks:
            try:
                getattr(hook, fn_name, lambda runner, **_: None)(self, **kwargs)
            except Exception as err:
                name = type(hook).__name__
                self.failed_hooks.setdefault(name, err)
                # One line for mistakes of the user; bugs need the traceback.
                plain_error = isinstance(err, (OdiseError, OSError))
                self.logger.error(f"{name}: {err if plain_error else traceback.format_exc()}")


# Hooks that are called when the metrics are computed and must not be lost.
_AFTER_EVALUATION = ("after_val_epoch", "after_val", "after_test_epoch", "after_test")


def _take_over_seed(cfg: Config) -> None:
    """Set the seed of a resumed run to that of its checkpoint.

    The sampler needs the seed before the checkpoint is loaded.

    Raises:
        CheckpointError: the config sets another seed.
    """
    path = cfg.get("load_from") or latest_checkpoint(cfg.work_dir)
    if path is None:
        return
    seed, given = read_training_state(path)["meta"].get("seed"), cfg.get("randomness") or {}
    if seed is not None and given.get("seed") not in (None, seed):
        raise CheckpointError(
            f"{path} was trained with randomness.seed={seed}, but this config sets "
            f"{given['seed']}: {ADVICE}"
        )
    cfg.randomness = {**given, "seed": seed}


def plain(value: Any) -> Any:
    """Convert a dataset's metainfo to dictionaries, lists, numbers and strings.

    Other objects are converted with ``str``.
    """
    if isinstance(value, Vocabulary):
        value = dict(synonyms=value.synonyms, is_thing=value.is_thing)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
