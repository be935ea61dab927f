"""Parameter counts against the published ones, the difference explained to the last parameter."""

import json

import pytest

from tests import golden
from tools.analysis_tools import model_summary, published
from tools.analysis_tools.meta import build_on_meta, load_model_config


@pytest.fixture(scope="module")
def label() -> dict:
    return model_summary.summarise("odise_coco_label")


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
    summary = label if variant == "label" else model_summary.summarise(config)
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


def test_names_what_lies_behind_the_last_taps(label: dict) -> None:
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


def test_needs_no_memory() -> None:
    model = build_on_meta(load_model_config("odise_coco_label"))
    tensors = [*model.parameters(), *model.buffers()]
    assert all(tensor.is_meta for tensor in tensors)


@pytest.mark.parametrize("form", ["table", "markdown", "json"])
def test_any_other_architecture_gets_the_counts_alone(
    form: str, capsys: pytest.CaptureFixture
) -> None:
    assert model_summary.main(["odise_tiny", "--format", form]) == 0
    output = capsys.readouterr().out
    summary = json.loads(output) if form == "json" else model_summary.summarise("odise_tiny")
    assert "published_frozen" not in summary
    assert sum(summary["trained"].values()) > 20_000_000
    if form != "json":
        assert f"{sum(summary['frozen'].values()):,}" in output
        assert "unexplained" not in output


def test_says_in_words_that_nothing_is_unexplained(label: dict) -> None:
    text = "\n".join(table.markdown() for table in model_summary.make_tables(label))
    assert "unexplained: 0." in text
    assert "1,494,179,500" in text and "28,067,009" in text
