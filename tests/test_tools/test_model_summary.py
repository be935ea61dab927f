"""Parameter counts: equal to the published ones, with every difference explained."""

import json
from functools import cache

import pytest
import torch
import yaml
from mmengine.config import Config

from odise_mm.analysis import model_summary as summary_module
from odise_mm.analysis import published
from odise_mm.analysis.meta import build_on_meta, load_model_config, short_edge
from odise_mm.analysis.model_summary import all_configs, summarize
from odise_mm.analysis.summary_tables import make_comparison, make_tables
from tests.support import golden, parts
from tools.analysis_tools import model_summary

METAFILE = yaml.safe_load((parts.CONFIGS / "ablation/metafile.yml").read_text(encoding="utf-8"))
OWN_PARTS = ("captioner", "feature projection")


@cache
def distinct_ablations() -> list[str]:
    """Return one config for each distinct architecture, as many rows of the studies share one."""
    found = {}
    for file in parts.config_files():
        if file.startswith("ablation/"):
            model = parts.load_config(file).model
            steps = model.backbone.pop("steps", ())
            key = [model.get(part) for part in ("backbone", "captioner", "neck", "classifiers")]
            key.append(len(steps))  # the steps' values do not change the cost
            found.setdefault(repr(key), file)
    return sorted(found.values())


@pytest.fixture(scope="module")
def label() -> dict:
    return summarize("odise_coco_label")


def test_published_constants_are_those_of_the_published_code() -> None:
    assert published.PARAMETERS["label"].trained_total == 28_067_009
    assert published.PARAMETERS["caption"].trained_total == 28_066_755
    assert published.PARAMETERS["label"].frozen_total == 1_494_179_500
    for variant, numbers in published.PARAMETERS.items():
        counts = golden.key_lists()[f"full/params_{variant}"]
        assert counts["trainable"] == numbers.trained_total
        captioner_and_neck = numbers.trained["captioner"] + numbers.trained["feature projection"]
        assert counts["trainable/backbone"] == captioner_and_neck
        assert counts["frozen/backbone"] == numbers.frozen_total
        assert counts["frozen/SD/model.diffusion_model"] == numbers.frozen["UNet"]
        text = counts["frozen/SD/cond_stage_model.transformer"]
        assert text == numbers.frozen["diffusion text encoder"]


@pytest.mark.parametrize("variant", ["label", "caption"])
def test_trained_parameters_are_the_published_part_by_part(variant: str, label: dict) -> None:
    config = f"odise_coco_{variant}"
    summary = label if variant == "label" else summarize(config)
    assert summary["variant"] == variant
    assert summary["trained"] == published.PARAMETERS[variant].trained


def test_frozen_difference_is_explained_to_the_last_parameter(label: dict) -> None:
    missing = {part: sum(modules.values()) for part, modules in label["not_built"].items()}
    theirs = published.PARAMETERS["label"].frozen
    for part, count in theirs.items():
        assert label["frozen"].get(part, 0) + missing.get(part, 0) == count, part
    total = sum(label["frozen"].values()) + sum(missing.values())
    assert total == published.PARAMETERS["label"].frozen_total
    # the paper's figure
    in_paper = (published.PARAMETERS["label"].frozen_total - label["fewer_positions"]) / 1e6
    assert abs(in_paper - published.PAPER_FROZEN_MILLIONS) < 0.1
    assert round(sum(label["trained"].values()) / 1e6, 1) == published.PAPER_TRAINED_MILLIONS


def test_not_built_are_the_modules_behind_the_last_taps(label: dict) -> None:
    unet, decoder = (label["not_built"][part] for part in ("UNet", "VAE decoder"))
    assert set(unet) == {
        "up_blocks.3.resnets.2", "up_blocks.3.attentions.2", "conv_norm_out", "conv_out"
    }  # fmt: skip
    assert {"decoder.up_blocks.2", "decoder.up_blocks.3", "decoder.conv_out"} < set(decoder)
    assert "VAE encoder" not in label["not_built"]


def test_taps_are_those_of_the_paper(label: dict) -> None:
    taps = [(tap["channels"], tap["stride"]) for tap in label["taps"]]
    assert taps == [
        (512, 4), (512, 8), (2560, 32), (1920, 32), (960, 16), (640, 8), (512, 8), (512, 4)
    ]  # fmt: skip


def test_all_tensors_are_on_meta() -> None:
    model = build_on_meta(load_model_config("odise_coco_label"))
    tensors = [*model.parameters(), *model.buffers()]
    assert all(tensor.is_meta for tensor in tensors)


@pytest.fixture
def tiny_flops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the count of FLOPs, which takes seconds, in tests of the tables."""
    monkeypatch.setattr(summary_module, "count_flops", lambda model, size: {"part": size * 10**9})


@pytest.mark.parametrize("form", ["table", "markdown", "json"])
def test_other_architectures_have_no_published_numbers(
    form: str, capsys: pytest.CaptureFixture, tiny_flops: None
) -> None:
    assert model_summary.main(["odise_tiny", "--size", "64", "--format", form]) == 0
    output = capsys.readouterr().out
    summary = json.loads(output) if form == "json" else summarize("odise_tiny", 64)
    assert "published_frozen" not in summary
    assert sum(summary["trained"].values()) > 20_000_000
    if form != "json":
        assert f"{sum(summary['frozen'].values()):,}" in output
        assert "unexplained" not in output


def test_table_notes_explain_the_difference(label: dict) -> None:
    text = "\n".join(table.markdown() for table in make_tables(label))
    assert "unexplained: 0." in text
    assert "1,494,179,500" in text and "28,067,009" in text


def test_flops_at_the_config_s_test_size(label: dict) -> None:
    """12.356 TFLOP at the published 1024 pixels; the README rounds to 12.4."""
    assert label["size"] == short_edge(load_model_config("odise_coco_label")) == 1024
    assert round(label["flops"] / 1e12, 1) == 12.4


@cache
def with_flops() -> set[str]:
    """Return one config of :func:`distinct_ablations` for each backbone network and captioner.

    To count the FLOPs of a model takes several times as long as to build it.
    """
    found = {}
    for file in distinct_ablations():
        model = parts.load_config(file).model
        network = [model.backbone.get(key) for key in ("type", "arch", "model")]
        found.setdefault(repr([network, (model.captioner or {}).get("type")]), file)
    return set(found.values())


@pytest.mark.parametrize("file", distinct_ablations())
def test_every_ablation_has_a_row(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are built and run without weights; parts that all rows share are reduced."""
    models = []

    def load_with_small_head(config: str) -> Config:
        cfg = load_model_config(config)
        cfg.model.head = parts.head_config(objectness=True)
        cfg.model.classifiers[0].embed_dim = 64
        if "/classification/" not in config:
            cfg.model.classifiers = cfg.model.classifiers[:1]
        return cfg

    def build(cfg: Config) -> torch.nn.Module:
        models.append(build_on_meta(cfg))
        return models[0]

    monkeypatch.setattr(summary_module, "load_model_config", load_with_small_head)
    monkeypatch.setattr(summary_module, "build_on_meta", build)
    if file not in with_flops():
        monkeypatch.setattr(summary_module, "count_flops", lambda model, size: {"part": 10**12})
    summary = summarize(f"configs/{file}")
    (model,) = models
    trained = sum(tensor.numel() for tensor in model.state_dict().values())
    assert sum(summary["trained"].values()) == trained
    counted = trained + sum(summary["frozen"].values())
    assert counted == sum(p.numel() for p in model.parameters())
    described = model.backbone.describe()
    assert [tap["channels"] for tap in summary["taps"]] == list(described["in_channels"])
    assert [tap["stride"] for tap in summary["taps"]] == list(described["in_strides"])
    # no public backbone of the study reads 512 x 512 pixels for less
    assert summary["size"] == 512 and summary["flops"] > 1e11
    # metafile; the head and the names have the published numbers of trained parameters
    stated = next(m["Metadata"] for m in METAFILE["Models"] if m["Config"] == f"configs/{file}")
    frozen = sum(summary["frozen"].values())
    own = sum(summary["trained"].get(part, 0) for part in OWN_PARTS)
    theirs = published.PARAMETERS["caption"].trained
    full = own + sum(count for part, count in theirs.items() if part not in OWN_PARTS)
    assert stated["Frozen Parameters (M)"] == round(frozen / 1e6, 1)
    assert stated["Trained Parameters (M)"] == round(full / 1e6, 1)
    row = make_comparison([summary]).rows[0]
    assert row[0] == file.removesuffix(".py") and f"{trained:,}" in row


def test_several_configs_make_one_table(capsys: pytest.CaptureFixture, tiny_flops: None) -> None:
    names = ["odise_tiny", "overfit_real_coco"]
    assert model_summary.main([*names, "--size", "64", "--format", "markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith(("| odise", "| overfit"))]
    assert [row.split(" | ")[0] for row in rows] == ["| odise_tiny", "| overfit_real_coco"]
    assert model_summary.main([*names, "--size", "64", "--format", "json"]) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    for row, model in zip(rows, models, strict=True):
        assert f"{sum(model['trained'].values()):,} | {sum(model['frozen'].values()):,}" in row
        assert model["size"] == 64 and model["flops"] == 64e9 and "0.064 (64)" in row


def test_all_configs_are_those_of_the_repository() -> None:
    found = all_configs()
    assert [file.partition("/configs/")[2] for file in found] == parts.config_files()


@pytest.mark.parametrize("arguments", [[], ["odise_tiny", "--all"], ["odise_tiny", "--size", "0"]])
def test_wrong_arguments(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        model_summary.parse_args(arguments)
    assert end.value.code == 2


def test_weights_are_dropped_wherever_they_are_named(tmp_path) -> None:
    file = tmp_path / "deep.py"
    file.write_text(
        "model = dict(clip=dict(weights='a'), classifiers=[dict(clip=dict(weights='b')), "
        "dict(parts=(dict(weights='c'), [dict(inner=dict(weights='d', model='m'))]))])"
    )
    model = load_model_config(str(file)).model
    assert "weights='" not in repr(model.to_dict()).replace('"', "'").replace(": ", "=")
    assert model.classifiers[1].parts[1][0].inner == dict(weights=None, model="m")
    assert load_model_config(str(file), weights=True).model.clip.weights == "a"
