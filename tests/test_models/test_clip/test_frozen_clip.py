"""FrozenCLIP: preprocessing and sources of weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize

from odise_mm.checkpoints.safe_loading import load_state_dict
from odise_mm.errors import CheckpointError
from odise_mm.models import FrozenCLIP, OpenCLIPBackbone
from odise_mm.models.clip import sources
from odise_mm.models.clip.sources import find_clip
from odise_mm.utils.pages import release_pages
from tests.support.parts import TINY_CLIP, clip, relative_error

# A small architecture of open_clip with the tag "openai"; the weights are random.
NAMED = "ViT-B-32"


@pytest.mark.parametrize(
    "size", [(56, 56), (512, 512), (64, 64), (40, 40), (100, 300), (300, 100), (57, 200), (33, 77)]
)
def test_preprocessing_equals_torchvisions(size: tuple[int, int]) -> None:
    model = clip()
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(size[0]))
    preprocess = Compose(
        [
            Resize(56, InterpolationMode.BICUBIC, antialias=False),
            CenterCrop(56),
            Normalize(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD),
        ]
    )
    with torch.no_grad():
        wanted = model.model.encode_image(preprocess(images))
    assert relative_error(model.encode_image(images), wanted) < 1e-5


def test_sizes_are_rounded_as_torchvision_rounds_them() -> None:
    # size * long / short is whole, but long * (size / short) is a little less in floating point
    cases = [(s, k * s) for s in range(1, 400) for k in (2, 3, 5) if int(k * s * (56 / s)) < 56 * k]
    assert cases
    for size in cases[:3]:
        test_preprocessing_equals_torchvisions(size)


def test_activation_is_quick_gelu_where_asked() -> None:
    names = {type(layer).__name__ for layer in clip().modules()}
    assert "QuickGELU" in names and "GELU" not in names
    plain = FrozenCLIP({**TINY_CLIP, "quick_gelu": False})
    plain.model.load_state_dict(clip().model.state_dict())
    images = torch.rand(2, 3, 56, 56)
    assert relative_error(plain.encode_image(images), clip().encode_image(images)) > 1e-4


def test_logit_scale_is_clamped() -> None:
    model = FrozenCLIP(TINY_CLIP)
    torch.testing.assert_close(model.logit_scale, torch.tensor(1 / 0.07))
    model.model.logit_scale.data.fill_(6.0)
    assert model.logit_scale == 100


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_local_file(ending: str, tiny_weights: Path, tmp_path: Path) -> None:
    state = load_state_dict(tiny_weights / "clip.pt")
    path = tmp_path / f"clip{ending}"
    if ending == ".pt":
        torch.save({"state_dict": state}, path)
    else:
        save_file({k: v.clone() for k, v in state.items()}, path)
    model = FrozenCLIP(TINY_CLIP, str(path))
    assert set(model.model.state_dict()) == set(state)
    for key, value in model.model.state_dict().items():
        assert torch.equal(value, state[key]), key
    reference = open_clip.CLIP(**TINY_CLIP).eval()
    reference.load_state_dict(state)
    tokens = open_clip.SimpleTokenizer()(["a cat", "brick wall"])
    images = torch.rand(2, 3, 56, 56)
    with torch.no_grad():
        torch.testing.assert_close(
            model.encode_text(["a cat", "brick wall"]), reference.encode_text(tokens)
        )
        wanted = reference.encode_image(model.normalize(images))
    torch.testing.assert_close(model.encode_image(images), wanted)
    assert not any(p.requires_grad for p in model.parameters())


def test_folder_of_torch_weights(tmp_path: Path) -> None:
    """open_clip saved ``open_clip_pytorch_model.bin`` before it used safetensors."""
    state = {k: v.clone() for k, v in clip().model.state_dict().items()}
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    model = FrozenCLIP(TINY_CLIP, str(tmp_path))
    assert all(torch.equal(v, state[k]) for k, v in model.model.state_dict().items())
    (tmp_path / "open_clip_pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="expected open_clip_model.safetensors"):
        FrozenCLIP(TINY_CLIP, str(tmp_path))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
def test_openais_torchscript_archive(tmp_path: Path) -> None:
    class Archive(torch.nn.Module):
        """OpenAI's format: TorchScript with three integers among the weights."""

        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            for name in ("input_resolution", "context_length", "vocab_size"):
                self.register_buffer(name, torch.tensor(56))
            for name, child in model.named_children():
                setattr(self, name, child)
            for name, parameter in model.named_parameters(recurse=False):
                setattr(self, name, parameter)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.text_projection

    path = tmp_path / "clip.pt"
    torch.jit.trace(Archive(clip().model), torch.ones(1, 64)).save(path)
    model = FrozenCLIP({**TINY_CLIP, "quick_gelu": False}, str(path))
    for key, value in model.model.state_dict().items():
        assert torch.equal(value, clip().model.state_dict()[key]), key
    # such files need QuickGELU regardless of the config
    images = torch.rand(1, 3, 56, 56)
    torch.testing.assert_close(model.encode_image(images), clip().encode_image(images))


HALF = ((0.5,) * 3,) * 2
OPENAI = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("name", "pair"),
    [
        ("ViT-B-16-SigLIP", HALF),
        ("ViT-SO400M-16-SigLIP2-512", HALF),
        ("PE-Core-L-14-336", HALF),
        ("nllb-clip-base-siglip", HALF),
        ("MobileCLIP-S1", ((0.0,) * 3, (1.0,) * 3)),
        ("ViT-H-14-CLIPA", IMAGENET),
        ("ViT-L-14-336-quickgelu", OPENAI),
        ("RN50", OPENAI),
    ],
)
def test_mean_and_deviation_of_a_local_file(name: str, pair: tuple) -> None:
    found = find_clip(name, "x.safetensors")
    assert (found.mean, found.std) == pair
    with torch.device("meta"):
        found = find_clip(name, "x.safetensors")
    assert (found.mean, found.std) == pair


def test_every_architecture_with_a_local_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """If all tags of open_clip share mean and std, these are used, otherwise there is a warning."""
    messages: list[str] = []
    monkeypatch.setattr(sources, "print_log", lambda text, **_: messages.append(text))
    others = 0
    for name in open_clip.list_models():
        messages.clear()
        found = find_clip(name, "x.safetensors")
        warned = bool(messages)
        with torch.device("meta"):
            tags = {
                find_clip(name, tag)[1:3] for tag in open_clip.list_pretrained_tags_by_model(name)
            }
        assert not tags or (found.mean, found.std) in tags, name
        assert warned == (len(tags) != 1), name
        others += tags != {OPENAI} and len(tags) == 1
    assert others >= 42  # in open_clip 3.0; newer ones have more


def test_given_mean_and_deviation(tmp_path: Path) -> None:
    own = dict(mean=[0.1, 0.2, 0.3], std=(1, 2, 3))
    for weights in (None, "x.safetensors", "openai"):
        with torch.device("meta"):
            found = find_clip("ViT-L-14", weights, **own)
        assert found[1:3] == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    torch.save(clip().model.state_dict(), tmp_path / "clip.pt")
    model = FrozenCLIP(TINY_CLIP, str(tmp_path / "clip.pt"), **own)
    images = torch.rand(1, 3, 56, 56)
    wanted = Normalize(own["mean"], own["std"])(images)
    torch.testing.assert_close(model.normalize(images), wanted)
    backbone = OpenCLIPBackbone(TINY_CLIP, str(tmp_path / "clip.pt"), **own)
    assert backbone.mean.flatten().tolist() == pytest.approx(own["mean"])
    siglip = OpenCLIPBackbone(TINY_CLIP, str(tmp_path / "clip.pt"))
    assert siglip.mean.flatten().tolist() == pytest.approx(OPENAI[0])


def test_preprocessing_of_the_folder_of_the_weights(tmp_path: Path) -> None:
    config = {"model_cfg": dict(TINY_CLIP), "preprocess_cfg": {"mean": [0.25] * 3, "std": [2] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    torch.save({}, tmp_path / "open_clip_pytorch_model.bin")
    assert find_clip("ViT-L-14", str(tmp_path))[1:3] == ((0.25,) * 3, (2.0,) * 3)
    assert find_clip(str(tmp_path), None)[1:3] == ((0.25,) * 3, (2.0,) * 3)


@pytest.mark.parametrize("values", [0.5, "0.5", [0.5], [0.5, "a", 1], [0.1, 0.2, float("nan")]])
def test_invalid_mean_and_std_raise(values: object) -> None:
    with pytest.raises(ValueError, match="mean=.* must be three numbers"):
        FrozenCLIP(TINY_CLIP, mean=values)
    with pytest.raises(ValueError, match="std=.* must be three numbers"):
        OpenCLIPBackbone(TINY_CLIP, std=values)
    with pytest.raises(ValueError, match="std=.*greater than 0"):
        FrozenCLIP(TINY_CLIP, std=[1, 1, 0])
    with pytest.raises(ValueError, match="mean=.* without a model"):
        OpenCLIPBackbone(clip=clip(), mean=[0.5] * 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("visual.proj"), r"1 missing.*visual.proj"),
        (lambda s: s.update({"extra": torch.zeros(1)}), r"1 unknown.*extra"),
        (
            lambda s: s.update({"visual.proj": torch.zeros(3, 3)}),
            r"1 of another shape.*visual.proj",
        ),
    ],
)
def test_local_file_of_another_model(change, message: str, tmp_path: Path) -> None:
    state = {k: v.clone() for k, v in clip().model.state_dict().items()}
    change(state)
    torch.save(state, tmp_path / "clip.pt")
    with pytest.raises(
        CheckpointError, match=f"clip.pt does not contain weights of CLIP.*{message}"
    ):
        FrozenCLIP(TINY_CLIP, str(tmp_path / "clip.pt"))


def test_checkpoint_of_a_segmentor_raises(tiny_weights: Path) -> None:
    with pytest.raises(CheckpointError, match="odise_label.pth does not contain weights of CLIP"):
        FrozenCLIP(TINY_CLIP, str(tiny_weights / "odise_label.pth"))


def test_missing_file() -> None:
    with pytest.raises(CheckpointError, match="nowhere/clip.pt"):
        FrozenCLIP(TINY_CLIP, "nowhere/clip.pt")


def test_tags_need_a_named_architecture() -> None:
    with pytest.raises(
        ValueError, match="no weights file openai; tags of open_clip need a named arch"
    ):
        FrozenCLIP(TINY_CLIP, "openai")


def test_message_does_not_contain_the_whole_config(tiny_weights: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        FrozenCLIP(TINY_CLIP, str(tiny_weights / "odise_label.pth"))
    assert "vision_cfg" not in str(caught.value) and "CLIP of the config" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [(dict(model=5), "model=5 must be a name"), (dict(weights=True), "weights=True must be a tag")],
)
def test_invalid_types_raise(options: dict, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        FrozenCLIP(**{"model": TINY_CLIP, **options})


def test_unknown_architecture() -> None:
    with pytest.raises(ValueError, match="open_clip has no architecture 'ViT-L-99'"):
        FrozenCLIP("ViT-L-99", "openai")


def test_unknown_tag_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="openia' is neither a file nor one of.*openai"):
        FrozenCLIP("ViT-L-14-336-quickgelu", "openia")


@pytest.mark.parametrize("name", ["ViT-L-14-336", "ViT-L-14-336-quickgelu"])
def test_meta_device_needs_no_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("download")

    monkeypatch.setattr(open_clip, "download_pretrained", refuse)
    with torch.device("meta"):
        model = FrozenCLIP(name, "openai")
    assert sum(p.numel() for p in model.parameters()) == 427_944_193  # as published
    # the tag determines the activation function
    assert any(type(layer).__name__ == "QuickGELU" for layer in model.modules())


def test_tag_is_downloaded_and_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = dict(TINY_CLIP, quick_gelu=False)
    state = {k: v.clone() for k, v in clip().model.state_dict().items()}
    save_file(state, tmp_path / "open_clip_model.safetensors")
    asked = []

    def download(tag: dict) -> str:
        asked.append(tag)
        return str(tmp_path / "open_clip_model.safetensors")

    monkeypatch.setattr(open_clip, "get_model_config", lambda _: dict(config))
    monkeypatch.setattr(open_clip, "download_pretrained", download)
    model = FrozenCLIP(NAMED, "openai")
    assert asked == [open_clip.get_pretrained_cfg(NAMED, "openai")]
    images = torch.rand(1, 3, 56, 56)
    torch.testing.assert_close(model.encode_image(images), clip().encode_image(images))


def test_tag_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: dict) -> str:
        raise OSError("Name or service not known\nmore")

    monkeypatch.setattr(open_clip, "download_pretrained", fail)
    with pytest.raises(CheckpointError, match="could not be downloaded.*local file") as caught:
        FrozenCLIP(NAMED, "openai")
    assert "\n" not in str(caught.value)


def test_fingerprint_tells_weights_apart() -> None:
    same = FrozenCLIP(TINY_CLIP)
    same.model.load_state_dict(clip().model.state_dict())
    assert same.fingerprint() == clip().fingerprint()
    before = same.fingerprint()
    same.model.transformer.resblocks[0].mlp.c_fc.weight.data += 0.1
    assert same.fingerprint() != before
    custom = dict(TINY_CLIP, custom_text=True)  # other parameter names: text.transformer...
    other = FrozenCLIP(custom)
    before = other.fingerprint()
    other.model.text.transformer.resblocks[0].mlp.c_fc.weight.data += 0.1
    assert other.fingerprint() != before


def test_random_weights_are_the_same_every_time() -> None:
    torch.manual_seed(1)
    one = FrozenCLIP(TINY_CLIP).model.state_dict()
    draw = torch.rand(1)
    two = FrozenCLIP(TINY_CLIP).model.state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert one["visual.conv1.weight"].std() > 0.01
    torch.manual_seed(1)
    assert torch.equal(draw, torch.rand(1)), "the generator of the caller has changed"


@pytest.mark.skipif(sys.platform != "linux", reason="pages are dropped on Linux only")
def test_casting_drops_the_pages_of_the_text_tower(tmp_path: Path) -> None:
    save_file(clip().model.state_dict(), tmp_path / "clip.safetensors")
    model = FrozenCLIP(TINY_CLIP, weights=str(tmp_path / "clip.safetensors"))
    before = model.encode_text(["a cat"])
    table = model.model.token_embedding.weight
    model.cast(torch.bfloat16)
    assert release_pages(table.data) == 0 and table.dtype == torch.float32
    assert torch.equal(model.encode_text(["a cat"]), before)
    assert release_pages(table.data) > 0  # the texts have read them
