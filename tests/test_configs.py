"""All configs build at full size, on the meta device, and contain no unknown keys.

Each config is loaded once, and configs with the same model share one instance.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import mmdet.registry
import mmengine.registry
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import Registry, init_default_scope
from torch import nn
from torch.utils.data import DataLoader

from odise_mm.config import checking as engine_config
from odise_mm.config.building import build_model
from odise_mm.config.changing import change_config, complete_config, unused_pipelines
from odise_mm.config.checking import check_config
from odise_mm.config.finding import load_config
from odise_mm.config.walking import PIPELINES, pipeline_users
from odise_mm.models import OpenVocabSegmentor, ProposalSegmentor
from odise_mm.registry import MODELS, TRANSFORMS
from odise_mm.vocabulary import Vocabulary
from tests.support.parts import config_files

ROOT = Path(__file__).resolve().parents[1]
FILES = [f"configs/{file}" for file in config_files()]
FILES += sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("projects/*/configs/*.py"))


# Buffers of batch norms, which are saved with a trained backbone.
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@cache
def loaded(file: str) -> Config:
    """Return a config that must not be changed; ``fresh`` returns copies."""
    return Config.fromfile(ROOT / file)


def fresh(file: str) -> Config:
    return copy.deepcopy(loaded(file))


_built: dict[str, nn.Module] = {}


def meta_model(file: str) -> nn.Module:
    """Return the model of a config on the meta device; configs with the same model share it."""
    key = str(loaded(file).model)
    if key not in _built:
        with torch.device("meta"):
            _built[key] = build_model(fresh(file))
    return _built[key]


def test_there_are_configs() -> None:
    assert {"configs/odise/odise_coco_label.py", "configs/odise/odise_coco_caption.py"} <= set(
        FILES
    )
    assert "projects/coat/configs/odise_label_coat.py" in FILES


def test_bases_inherit_from_bases_only() -> None:
    """A change of one config must not change others unexpectedly."""
    files = [*(ROOT / "configs").rglob("*.py"), *ROOT.glob("projects/*/configs/**/*.py")]
    bases = [path for path in files if "_base_" in path.parts]
    assert ROOT / "configs/_base_/ablation.py" in bases
    for path in bases:
        for inherited in Config._get_base_files(str(path)):
            file = (path.parent / inherited).resolve()
            assert file in bases, f"{path.relative_to(ROOT)} inherits from {inherited}"


@pytest.mark.parametrize("file", FILES)
def test_builds_on_the_meta_device(file: str) -> None:
    model = meta_model(file)
    assert isinstance(model, OpenVocabSegmentor | ProposalSegmentor)
    assert all(p.is_meta for p in model.parameters())
    training = loaded(file).get("train_dataloader")
    names = training.dataset.vocabulary if training else "coco"
    assert model.vocabulary == Vocabulary.load(names)
    assert model.ensemble.train_vocabulary == Vocabulary.load(names)
    saved = [key for key in model.state_dict() if not key.endswith(STATISTICS)]
    assert sum(p.requires_grad for p in model.parameters()) == len(saved)


@pytest.mark.parametrize("file", FILES)
def test_test_pipeline_builds(file: str) -> None:
    for step in fresh(file).test_pipeline:
        assert TRANSFORMS.build(step) is not None


def having(key: str) -> list[str]:
    """Return the configs with a setting, without those that cannot be loaded.

    The latter fail in their own tests and should not fail the collection of all tests.
    """
    found = []
    for file in FILES:
        with contextlib.suppress(Exception):
            if key in loaded(file):
                found.append(file)
    return found


TRAINED, TESTED = having("train_dataloader"), having("test_dataloader")


def test_configs_for_training_and_testing() -> None:
    assert {"configs/odise/odise_coco_label.py", "configs/odise/odise_coco_caption.py"} <= set(
        TRAINED
    )
    assert set(FILES) - set(TESTED) <= {"configs/toy/odise_tiny.py"}


@pytest.mark.parametrize("file", sorted({*TRAINED, *TESTED}))
def test_datasets_are_complete_without_our_runner(file: str, tmp_path: Path) -> None:
    """Build datasets like mmengine's runner and mmdet's tools; the data need not exist."""
    cfg = fresh(file)
    assert not unused_pipelines(cfg)
    init_default_scope(cfg.default_scope)
    for stage, key in PIPELINES.items():
        for place, dataset in pipeline_users(cfg, stage):
            assert dataset.pipeline == cfg[key], place
            names = dataset.get("vocabulary")
            if str(names).endswith(".txt") and not Path(names).is_file():
                dataset.vocabulary = "voc20"  # the vocabulary file is part of the data
            for registry in (mmengine.registry.DATASETS, mmdet.registry.DATASETS):
                built = registry.build({**dataset, "lazy_init": True})
                steps = [type(step).__name__ for step in built.pipeline.transforms]
                assert steps == [step.type.rpartition(".")[2] for step in cfg[key]], place


@pytest.mark.parametrize("file", TRAINED)
def test_training_pipeline_builds(file: str) -> None:
    cfg = complete_config(loaded(file))
    for step in cfg.train_dataloader.dataset.pipeline:
        assert TRANSFORMS.build(step) is not None


@pytest.mark.parametrize("file", FILES)
def test_every_part_is_known(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check data, metrics, loops, hooks, optimizer and schedules as if data and a GPU existed."""
    monkeypatch.setattr("odise_mm.config.checking.os.path.exists", lambda path: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    cfg = complete_config(loaded(file))
    check_config(cfg)
    assert not list(unknown_keys(cfg))


# Settings that the runner and mmengine remove before they build a part.
REMOVED = {
    "optim_wrapper": {"constructor", "paramwise_cfg"},
    "param_scheduler": {"by_epoch", "convert_to_iter_based"},
    "default_hooks": {"priority"},
    "custom_hooks": {"priority"},
}


def unknown_keys(cfg: Config) -> Iterator[str]:
    """Yield the places of arguments that a part does not have; the model's parts are skipped."""
    for place, part, registry in engine_config._parts(cfg):
        known = {"type", "_scope_"} | arguments(part["type"], registry)
        known |= REMOVED.get(re.match(r"\w+", place)[0], set())
        yield from (f"{place}.{key}" for key in part if key not in known)
    loader_keys = set(inspect.signature(DataLoader.__init__).parameters)
    for stage in ("train", "val", "test"):
        loader = cfg.get(f"{stage}_dataloader") or {}
        yield from (f"{stage}_dataloader.{key}" for key in loader if key not in loader_keys)


def arguments(kind: str, registry: Registry) -> set[str]:
    """Return the arguments of a part's ``__init__``, including those it passes to base classes."""
    found: set[str] = set()
    for cls in registry.get(kind).__mro__:
        if "__init__" not in vars(cls):
            continue
        parameters = inspect.signature(cls.__init__).parameters.values()
        found |= {p.name for p in parameters}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"test_dataloader.dataset.vocabularies": 1}, "test_dataloader.dataset.vocabularies"),
        ({"test_dataloader.dataset.filter_cfg": None}, None),  # an argument of a base class
        ({"test_dataloader.shuffles": 1}, "test_dataloader.shuffles"),
        ({"test_dataloader.sampler.roundup": 1}, "test_dataloader.sampler.roundup"),
        ({"test_pipeline.1.scales": 1}, "test_dataloader.dataset.pipeline[1].scales"),
        ({"val_evaluator.0.per_clas": 1}, "val_evaluator[0].per_clas"),
        ({"optim_wrapper.optimizer.lrr": 1}, "optim_wrapper.optimizer.lrr"),
        ({"optim_wrapper.clip_gradient": 1}, "optim_wrapper.clip_gradient"),
        ({"param_scheduler.0.start": 1}, "param_scheduler[0].start"),
        ({"default_hooks.checkpoint.intervals": 1}, "default_hooks.checkpoint.intervals"),
        ({"train_cfg.max_epoch": 1}, "train_cfg.max_epoch"),
    ],
)
def test_unknown_keys_are_found(changes: dict[str, Any], place: str | None) -> None:
    """The check above detects unknown keys."""
    cfg = fresh("configs/odise/odise_coco_label.py")
    change_config(cfg, changes)
    assert place is None or place in list(unknown_keys(complete_config(cfg)))
    if place is None:
        assert not list(unknown_keys(complete_config(cfg)))


@pytest.mark.parametrize("file", sorted({*TRAINED, *TESTED}))
def test_runner_and_samplers_are_ours(file: str) -> None:
    cfg = loaded(file)
    assert cfg.runner_type == "OpenVocabRunner"
    for stage in ("val", "test"):
        loader = cfg.get(f"{stage}_dataloader")
        assert loader is None or loader.sampler.round_up is False
    if file in TRAINED:
        assert cfg.train_dataloader.sampler.type == "SeededSampler"
        assert cfg.model.vocabulary == cfg.train_dataloader.dataset.vocabulary
        assert "train_vocabulary" not in cfg.model.ensemble, "it is set in one place only"


@pytest.mark.parametrize("file", FILES)
def test_written_config_is_read_back(file: str) -> None:
    config = load_config(ROOT / file)
    again = Config.fromstring(config.pretty_text, ".py")
    assert again.to_dict() == config.to_dict()


@pytest.mark.parametrize(
    "part", ["", "backbone", "captioner", "clip", "neck", "head", "ensemble", "test_cfg"]
)
def test_unknown_keys_fail(part: str) -> None:
    model = fresh("configs/toy/odise_tiny.py").model
    (model[part] if part else model)["misspelt"] = 1
    with torch.device("meta"), pytest.raises(TypeError, match="misspelt"):
        MODELS.build(model)


@pytest.mark.parametrize("index", [0, 1])
def test_unknown_keys_of_classifiers_fail(index: int) -> None:
    model = fresh("configs/toy/odise_tiny.py").model
    model.classifiers[index].misspelt = 1
    with torch.device("meta"), pytest.raises(TypeError, match="misspelt"):
        MODELS.build(model)


@pytest.mark.parametrize("part", ["backbone", "captioner", "clip", "neck", "head", "ensemble"])
def test_unknown_parts_fail(part: str) -> None:
    model = fresh("configs/toy/odise_tiny.py").model
    model[part].type = "NoSuchPart"
    with (
        torch.device("meta"),
        pytest.raises(KeyError, match="NoSuchPart.*this package has: .*Mask"),
    ):
        MODELS.build(model)


ROWS = [file for file in FILES if file.startswith("configs/ablation/")]


def code_lines(path: Path) -> list[str]:
    """Return the lines of a file that are neither blank nor only comments."""
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENCODING}
    skipped |= {tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    with path.open("rb") as stream:
        tokens = [t for t in tokenize.tokenize(stream.readline) if t.type not in skipped]
    numbers = {n for t in tokens for n in range(t.start[0], t.end[0] + 1)}
    lines = path.read_text(encoding="utf-8").splitlines()
    return [lines[n - 1] for n in sorted(numbers)]


@pytest.mark.parametrize("file", ROWS)
def test_an_ablation_config_is_short_and_has_a_comment(file: str) -> None:
    path = ROOT / file
    assert path.read_text(encoding="utf-8").startswith("# ")
    assert len(code_lines(path)) <= 10


def test_code_lines_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "row.py"
    path.write_text('# what\n\n_base_ = ["x.py"]  # why\nmodel = dict(\n    # a\n    b=1,\n)\n')
    assert code_lines(path) == ['_base_ = ["x.py"]  # why', "model = dict(", "    b=1,", ")"]


INDEX = yaml.safe_load((ROOT / "model-index.yml").read_text(encoding="utf-8"))["Import"]
METAFILES = {file: yaml.safe_load((ROOT / file).read_text(encoding="utf-8")) for file in INDEX}
ENTRIES = {entry["Name"]: entry for metafile in METAFILES.values() for entry in metafile["Models"]}
TASKS = {  # task -> its metrics
    "Panoptic Segmentation": {"PQ", "SQ", "RQ"},
    "Instance Segmentation": {"mAP"},
    "Semantic Segmentation": {"mIoU"},
    "Instance Proposals": {"AR@100"},
}


def test_the_index_has_all_metafiles() -> None:
    found = {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("metafile.yml")}
    assert set(INDEX) == found and len(INDEX) == len(found)
    assert len(ENTRIES) == sum(len(metafile["Models"]) for metafile in METAFILES.values())


@pytest.mark.parametrize(
    "folder",
    ["odise", "ablation", "baseline", "fcclip", "ovrcoat", "maftplus", "maskclippp", "proposals"],
)
def test_every_config_is_in_the_index_and_every_entry_has_a_config(folder: str) -> None:
    configs = [entry["Config"] for entry in ENTRIES.values()]
    there = {file for file in FILES if file.startswith(f"configs/{folder}/")}
    listed = {config for config in configs if config.startswith(f"configs/{folder}/")}
    assert listed == there
    assert len(set(configs)) == len(configs)


@pytest.mark.parametrize("file", METAFILES)
def test_collections_are_described(file: str) -> None:
    collections = {c["Name"]: c for c in METAFILES[file]["Collections"]}
    for collection in collections.values():
        assert set(collection["Paper"]) == {"Title", "URL"}
        assert (ROOT / collection["README"]).is_file()
    for entry in METAFILES[file]["Models"]:
        assert entry["In Collection"] in collections


@pytest.mark.parametrize("name", ENTRIES)
def test_results_are_plausible_and_from_the_paper(name: str) -> None:
    entry = ENTRIES[name]
    allowed = {"Name", "In Collection", "Config", "Metadata", "Results", "Weights"}
    assert set(entry) <= allowed
    results = entry.get("Results", [])
    assert not results or entry["Metadata"]["Results From"] == "paper"
    for result in results:
        assert set(result) == {"Task", "Dataset", "Metrics"}
        assert set(result["Metrics"]) <= TASKS[result["Task"]]
        assert all(0 < value < 100 for value in result["Metrics"].values())
    places = [(r["Task"], r["Dataset"], m) for r in results for m in r["Metrics"]]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("variant", ["label", "caption"])
def test_the_papers_results_equal_those_of_the_documentation(variant: str) -> None:
    text = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| {variant} \|(.*)\|$", text, re.M)
    page = [[float(n) for n in re.findall(r"[\d.]+", cell)] for cell in row.split("|")]
    sets = ("ade20k", "coco", "ade847", "pc459", "pc59", "voc21")
    names = [f"odise_coco_{variant}" if s == "coco" else f"odise_{variant}_{s}" for s in sets]
    ours = [
        [value for result in ENTRIES[name]["Results"] for value in result["Metrics"].values()]
        for name in names
    ]
    assert ours == page


def test_links_to_weights_equal_those_of_the_documentation() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    page = (ROOT / "docs/weights.md").read_text(encoding="utf-8")
    named = {name: entry["Weights"] for name, entry in ENTRIES.items() if "Weights" in entry}
    links = {name: link for name, link in named.items() if link.startswith("https://")}
    shipped = {name: file for name, file in named.items() if name not in links}
    assert shipped and all(
        name.startswith("odise_toy_") and (ROOT / file).is_file() for name, file in shipped.items()
    )
    assert {name.split("_")[1] for name in links} <= {"coco", "label", "caption"}
    for name, link in links.items():
        file = link.rpartition("/")[2]
        variant = "label" if "label" in name else "caption"
        assert f"({link})" in readme and file.startswith(f"odise_{variant}_coco")
        assert re.search(rf"`{file}` \| `odise_coco_{variant}`", page)
