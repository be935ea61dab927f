"""Tests of captioners that write sentences against CLIP in numpy and transformers' BLIP."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

from odise_mm.analysis.meta import build_on_meta, flop_counter, load_model_config, run_on_meta
from odise_mm.config.building import build_model
from odise_mm.errors import CheckpointError, ConfigError, DatasetError, VocabularyError
from odise_mm.models import (
    BLIPCaptioner,
    CaptionCaptioner,
    Condition,
    HeuristicCaptioner,
    OpenVocabSegmentor,
    TextCaptioner,
    TextEncoder,
)
from odise_mm.models.backbones.base import Backbone
from odise_mm.vocabulary import Vocabulary
from tests.support.parts import CONFIGS, clip, load_config, random_image, random_weights
from tests.support.training import make_model, make_sample

PLACES = ["kitchen", "beach", "street", "forest", "office"]
OBJECTS = ["cat", "dog", "table", "tree", "car", "sofa", "boat"]


class FakeEncoder:
    """Returns random embeddings, seeded by the characters of a text, and records the texts."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, texts: Sequence[str]) -> Tensor:
        self.asked.append(list(texts))
        seeds = [sum(i * ord(c) for i, c in enumerate(text, 1)) for text in texts]
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        return torch.stack([torch.randn(77, 32, generator=draw) for draw in draws])


@pytest.fixture
def encoder() -> FakeEncoder:
    return FakeEncoder()


def tiles(count: int = 3, size: int = 64, seed: int = 0) -> Tensor:
    """Draw tiles with 8-bit values, as the data preprocessor returns them."""
    return torch.stack([random_image(size, size, seed + i) for i in range(count)]).float() / 255


class Counted(TextCaptioner):
    """Describes the brightness and caption of a tile, and counts the tiles."""

    seen = 0

    def describe(self, tiles: Tensor, captions: Sequence[str | None]) -> list[str]:
        self.seen += len(tiles)
        return [f"{tile.mean():.3f} {text}" for tile, text in zip(tiles, captions, strict=True)]


def test_prompt_encoder_gets_the_sentences(encoder: FakeEncoder) -> None:
    captioner = Counted(encoder)
    batch = tiles(3)
    condition = captioner(batch, ["a", "b", None])
    sentences = captioner.describe(batch, ["a", "b", None])
    assert encoder.asked == [sentences]
    assert torch.equal(condition.context, encoder(sentences))
    assert condition.time is None


def test_equal_tiles_are_described_once(encoder: FakeEncoder) -> None:
    captioner = Counted(encoder)
    a, b = tiles(2)
    nearly = a.clone()
    nearly[0, 0, 0], nearly[0, 0, 1] = a[0, 0, 1], a[0, 0, 0]  # same sum
    assert not torch.equal(a, nearly)
    batch, captions = torch.stack([a, b, a, nearly, a]), ["x", "x", "x", "x", "y"]
    context = captioner(batch, captions).context
    assert captioner.seen == 4, "the third equals the first; the last has another caption"
    each = [captioner(t[None], [c]).context[0] for t, c in zip(batch, captions, strict=True)]
    assert torch.equal(context, torch.stack(each))


def test_own_caption(encoder: FakeEncoder) -> None:
    captioner = CaptionCaptioner(encoder)
    context = captioner(tiles(3), ["a cat", "", "a cat"]).context
    assert torch.equal(context, encoder(["a cat", "", "a cat"]))
    assert list(captioner.parameters()) == [] and captioner.state_dict() == {}
    for captions in (None, ["a cat", None, "a dog"]):
        with pytest.raises(DatasetError, match="captions_file .* 'caption'"):
            captioner(tiles(3), captions)


def heuristic(encoder: FakeEncoder, **changes: object) -> HeuristicCaptioner:
    arguments = dict(places=PLACES, objects=OBJECTS, num_places=2, num_objects=3) | changes
    return HeuristicCaptioner(TextEncoder(clip()), encoder, **arguments)


def ranked(batch: Tensor, names: Sequence[str]) -> list[list[str]]:
    """Rank names in numpy by the embeddings of open_clip's towers."""
    model = clip().model
    tokens = open_clip.SimpleTokenizer()([f"Photo of a {name}." for name in names])
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
    std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)
    with torch.no_grad():
        text = model.encode_text(tokens).numpy().astype(np.float64)
        image = model.encode_image((batch - mean) / std).numpy().astype(np.float64)
    cosine = (image @ text.T) / np.outer(*(np.linalg.norm(x, axis=1) for x in (image, text)))
    return [[names[i] for i in order] for order in np.argsort(-cosine, axis=1)]


def test_heuristic_ranking_equals_numpy(encoder: FakeEncoder) -> None:
    batch = tiles(4, size=clip().image_size)
    expected = [
        f"a photo taken at a {where[0]} or {where[1]}, with {what[0]}, {what[1]}, {what[2]}"
        for where, what in zip(ranked(batch, PLACES), ranked(batch, OBJECTS), strict=True)
    ]
    assert len(set(expected)) > 1, "images must differ for this to test anything"
    captioner = heuristic(encoder)
    assert captioner.describe(batch, [None] * 4) == expected
    context = captioner(batch, ["ignored"] * 4).context
    assert torch.equal(context, encoder(expected))


def test_similar_names_are_distinguished_under_autocast(
    encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = heuristic(encoder, num_objects=1, num_places=1)
    cat, dog = captioner.text_encoder(["Photo of a cat.", "Photo of a dog."])
    between = F.normalize(cat, dim=0) + 1.0001 * F.normalize(dog, dim=0)
    monkeypatch.setattr(type(clip()), "encode_image", lambda _, tiles: between[None])
    with torch.autocast("cpu", torch.bfloat16):
        (sentence,) = captioner.describe(tiles(1), [None])
    assert sentence.endswith("with dog")


def test_heuristic_name_lists(encoder: FakeEncoder, tmp_path: Path) -> None:
    captioner = HeuristicCaptioner(TextEncoder(clip()), encoder)
    assert captioner.objects == list(Vocabulary.load("lvis").names)
    assert len(captioner.places) == len(set(captioner.places)) == 501
    assert {"kitchen", "beach", "street"} <= set(captioner.places)
    file = tmp_path / "places.txt"
    file.write_text("stuff: bank, river bank\nstuff: moor\n")
    captioner = heuristic(encoder, places=str(file), objects="voc20", num_places=1)
    assert captioner.places == ["bank", "moor"]
    assert captioner.objects == list(Vocabulary.load("voc20").names)
    one = heuristic(encoder, places=["moor"], objects=["cat"], num_places=1, num_objects=1)
    assert one.describe(tiles(2), [None] * 2) == ["a photo taken at a moor, with cat"] * 2
    three = heuristic(encoder, places=["moor"] * 3, objects=["cat"], num_places=3, num_objects=1)
    assert "at a moor, moor or moor, with cat" in three.describe(tiles(1), [None])[0]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(places=[]), ValueError, "places has 0 names and num_places=2"),
        (dict(objects=["cat"]), ValueError, "objects has 1 names and num_objects=3"),
        (dict(num_objects=0), ValueError, "num_objects=0"),
        (dict(num_objects="3"), TypeError, "num_objects='3' must be a whole number"),
        (dict(places=5), TypeError, "places=5 must be a list of names"),
        (dict(objects="lvs"), VocabularyError, "did you mean 'lvis'"),
        (
            dict(places="nowhere/places.txt"),
            VocabularyError,
            "vocabulary file 'nowhere/places.txt' not found",
        ),
        (dict(template="a {places}"), ValueError, "{places} and {objects}"),
        (dict(template="{places} {objects} {x}"), ValueError, "and no others"),
        (dict(template="{places} {"), ValueError, "template='{places} {' of HeuristicCaptioner"),
    ],
)
def test_wrong_name_lists_raise(
    encoder: FakeEncoder, changes: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        heuristic(encoder, **changes)


# ------------------------------------------------------------------------------------ BLIP


def blip(encoder: Callable | None = None, **changes: object) -> BLIPCaptioner:
    return BLIPCaptioner(encoder or FakeEncoder(), **dict(arch="tiny") | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that transformers writes for a BLIP with other random weights than the default."""
    path = tmp_path_factory.mktemp("blip")
    captioner = blip()
    random_weights(captioner.model, seed=3, scale=2.0)
    captioner.model.text_decoder.bert.embeddings.word_embeddings.weight.data *= 8
    captioner.model.save_pretrained(path)
    size = captioner.image_size
    processor = BlipImageProcessor(size=dict(height=size, width=size))
    BlipProcessor(processor, captioner.tokenizer).save_pretrained(path)
    return path


def transformers_sentences(folder: Path, images: Sequence[Image.Image]) -> list[str]:
    """Describe PIL images with transformers."""
    processor = BlipProcessor.from_pretrained(folder)
    model = BlipForConditionalGeneration.from_pretrained(folder)
    texts = []
    for image in images:
        inputs = processor(images=image, return_tensors="pt")
        tokens = model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=20)
        texts.append(processor.decode(tokens[0], skip_special_tokens=True))
    return texts


def as_pil(batch: Tensor) -> list[Image.Image]:
    levels = (batch * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(array) for array in levels]


def test_blip_captions_equal_transformers(folder: Path, encoder: FakeEncoder) -> None:
    batch = tiles(4, size=80)
    expected = transformers_sentences(folder, as_pil(batch))
    assert len(set(expected)) > 1 and all(expected)
    captioner = blip(encoder, weights=str(folder))
    assert captioner.describe(batch, [None] * 4) == expected
    assert torch.equal(captioner(batch).context, encoder(expected))
    assert captioner.describe(batch, [None] * 4) == expected, "the same every time"


@pytest.mark.parametrize("size", [(32, 32), (50, 91), (200, 70)])
def test_blip_preprocessing_equals_transformers(size: tuple[int, int]) -> None:
    batch = torch.stack([random_image(*size, seed) for seed in range(2)]).float() / 255
    kind = BlipImageProcessor
    if not hasattr(kind, "image_mean"):  # transformers before 5.4
        kind = transformers.BlipImageProcessorFast
    processor = kind(size=dict(height=32, width=32))
    for images in (as_pil(batch), [*(batch * 255).round().to(torch.uint8)]):
        expected = processor(images=images, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(blip().preprocess(batch), expected, atol=1e-6, rtol=0)


def test_tiles_of_a_batch_are_independent(folder: Path, encoder: FakeEncoder) -> None:
    batch = tiles(2, size=80)
    for captioner in (blip(encoder, weights=str(folder)), heuristic(encoder)):
        both = captioner(batch).context
        each = torch.cat([captioner(tile[None]).context for tile in batch])
        assert torch.equal(both, each)


def test_sentences_that_end_at_different_lengths(folder: Path, tmp_path: Path) -> None:
    """Padding after the end of a shorter sentence is dropped."""
    path = shutil.copytree(folder, tmp_path / "blip")
    first = transformers_sentences(path, as_pil(tiles(4, size=80)))
    config = json.loads((path / "config.json").read_text())
    word = next(w for w in first[0].split()[1:] if any(w not in t.split() for t in first))
    vocab = blip(weights=str(path)).tokenizer.get_vocab()
    config["text_config"]["sep_token_id"] = vocab[word]
    (path / "config.json").write_text(json.dumps(config))
    expected = transformers_sentences(path, as_pil(tiles(4, size=80)))
    assert len({len(text.split()) for text in expected}) > 1
    assert blip(weights=str(path)).describe(tiles(4, size=80), [None] * 4) == expected


def test_nothing_is_trained_or_saved(encoder: FakeEncoder) -> None:
    for captioner in (blip(encoder), heuristic(encoder)):
        captioner.train()
        assert not any(p.requires_grad for p in captioner.parameters())
        assert captioner.state_dict() == {}
        assert captioner.load_state_dict({}).missing_keys == []
        assert not any(m.training for m in captioner.modules() if list(m.parameters(False)))
        assert not captioner(tiles(1)).context.requires_grad


def test_blip_in_sixteen_bit(folder: Path) -> None:
    batch = tiles(4, size=80)
    captioner = blip(weights=str(folder))
    captioner.cast(torch.bfloat16)
    assert {p.dtype for p in captioner.parameters()} == {torch.bfloat16}
    assert captioner.preprocess(batch).dtype == torch.bfloat16
    model = BlipForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
    tokens = model.generate(
        captioner.preprocess(batch), do_sample=False, num_beams=1, max_new_tokens=20
    )
    expected = captioner.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    with torch.autocast("cpu", torch.bfloat16):  # has no effect on 16-bit weights
        assert captioner.describe(batch, [None] * 4) == expected


def test_random_weights_are_deterministic() -> None:
    batch = tiles(3)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, two = blip(), blip()
    assert torch.equal(before, torch.get_rng_state())
    sentences = one.describe(batch, [None] * 3)
    assert sentences == two.describe(batch, [None] * 3)
    assert len(set(sentences)) > 1 and all(text.replace(" ", "").isalpha() for text in sentences)


def test_all_file_formats_of_the_hub_are_read(folder: Path, tmp_path: Path) -> None:
    expected = blip(weights=str(folder)).describe(tiles(3), [None] * 3)
    state = load_file(folder / "model.safetensors")
    tied = "text_decoder.cls.predictions.decoder"
    state |= {
        f"{tied}.weight": state["text_decoder.bert.embeddings.word_embeddings.weight"].clone(),
        f"{tied}.bias": state["text_decoder.cls.predictions.bias"].clone(),
        "text_decoder.bert.embeddings.position_ids": torch.arange(32)[None],
    }
    old = shutil.copytree(folder, tmp_path / "old")
    (old / "model.safetensors").unlink()
    torch.save({key: value.half() for key, value in state.items()}, old / "pytorch_model.bin")
    captioner = blip(weights=str(old))
    assert {p.dtype for p in captioner.parameters()} == {torch.float32}
    halves = {key: value.half().float() for key, value in state.items()}
    for key, value in captioner.model.state_dict().items():
        assert torch.equal(value, halves[key]), key
    decoder = captioner.model.text_decoder
    assert decoder.cls.predictions.decoder.weight is decoder.bert.embeddings.word_embeddings.weight
    # The tokenizer as a plain list of words.
    words = sorted((vocab := blip().tokenizer.get_vocab()), key=vocab.get)
    plain = shutil.copytree(folder, tmp_path / "plain")
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (plain / name).unlink(missing_ok=True)
    (plain / "vocab.txt").write_text("\n".join(words) + "\n")
    assert blip(weights=str(plain)).describe(tiles(3), [None] * 3) == expected


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text)


def change_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_attention_heads"] = 4
    (folder / "config.json").write_text(json.dumps(config))


def change_weights(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["extra"] = state.pop("vision_model.embeddings.class_embedding")
    save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("model.safetensors"), "expected model.safetensors, pytorch_model.bin"),
        (without("config.json"), "config.json: no such config of a BLIP model"),
        (
            without("tokenizer.json"),
            "has no tokenizer: it contains none of tokenizer.json, vocab.txt",
        ),
        (write("config.json", "{"), "config.json: not JSON, or truncated"),
        (write("tokenizer.json", "{"), "tokenizer in .* cannot be read"),
        (write("model.safetensors", ""), "model.safetensors is empty"),
        (change_config, "text_config.num_attention_heads is 4, .* arch has 2. Set `arch`"),
        (change_weights, "missing .first: vision_model.embeddings.class_embedding"),
    ],
)
def test_broken_folders_raise(
    folder: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    damage(copy)
    with pytest.raises(CheckpointError, match=message):
        blip(weights=str(copy))


def test_missing_weights_raise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere/at/all does not exist.* config.json"):
        blip(weights="nowhere/at/all")

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(CheckpointError, match="no network.* put config.json, model.safetensors"):
        blip(weights="Salesforce/blip-image-captioning-large")


def test_hub_files_are_fetched(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Safetensors are preferred to the older format, and no other large files are fetched."""
    expected = blip(weights=str(folder)).describe(tiles(2), [None] * 2)
    source = shutil.copytree(folder, tmp_path / "hub")
    (source / "tf_model.h5").write_text("large")
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    target = tmp_path / "cache"

    def download(name: str, allow_patterns: list[str]) -> str:
        assert name == "some/blip"
        target.mkdir(exist_ok=True)
        for file in source.iterdir():
            if any(fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copy(file, target)
        return str(target)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert blip(weights="some/blip").describe(tiles(2), [None] * 2) == expected
    fetched = {file.name for file in target.iterdir()}
    assert "model.safetensors" in fetched and not fetched & {"tf_model.h5", "pytorch_model.bin"}
    shutil.rmtree(target)
    (source / "model.safetensors").unlink()
    assert blip(weights="some/blip").describe(tiles(2), [None] * 2) == expected


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("huge", "unknown arch 'huge' .* base, large, tiny"),
        (dict(layers=2), "unknown key layers in arch"),
        (dict(text_config=dict(heads=2)), "unknown key text_config.heads"),
    ],
)
def test_unknown_architectures(arch: str | dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        blip(arch=arch)


def test_sizes_of_the_public_weights() -> None:
    """Salesforce's model card has 470 M for large because it counts tied embeddings twice."""
    with torch.device("meta"):
        large, base = blip(arch="large"), blip(arch="base")
    counts = [sum(p.numel() for p in c.parameters()) for c in (large, base)]
    assert [round(count / 1e6) for count in counts] == [446, 224]
    tied = large.model.text_decoder.cls.predictions.decoder
    twice = counts[0] + tied.weight.numel() + tied.bias.numel()
    assert round(twice / 1e6) == 470
    assert large.image_size == 384


# --------------------------------------------------------------------------- whole models


CAPTIONERS = {
    "empty": dict(type="EmptyCaptioner"),
    "heuristic": dict(type="HeuristicCaptioner", num_places=1, num_objects=2),
    "blip": dict(type="BLIPCaptioner", arch="tiny"),
    "own_caption": dict(type="CaptionCaptioner"),
}


def whole_model(name: str) -> OpenVocabSegmentor:
    return make_model(captions=False, captioner=CAPTIONERS[name])


def sample(model: OpenVocabSegmentor, seed: int, caption: str | None) -> dict:
    """Draw a batch of one image with two tiles."""
    one = make_sample(3, (64, 100), seed=seed)
    if caption is not None:
        one.set_metainfo(dict(caption=caption))
    batch = dict(inputs=[random_image(64, 100, seed)], data_samples=[one])
    return model.data_preprocessor(batch, False)


@pytest.mark.parametrize("name", CAPTIONERS)
def test_whole_models_predict_and_train(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = whole_model(name)
    contexts = []
    inner = model.backbone.forward

    def forward(tiles: Tensor, condition: Condition) -> list[Tensor]:
        contexts.append(condition.context)
        return inner(tiles, condition)

    monkeypatch.setattr(model.backbone, "forward", forward)
    losses = model(**sample(model, 0, "a dog near a red car"), mode="loss")
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    trained = {key for key, p in model.named_parameters() if p.requires_grad}
    assert trained == set(model.state_dict())
    assert not any(key.startswith("captioner.") for key in trained)
    assert all(p.grad is not None for p in model.neck.parameters())
    assert all(p.grad is None for p in model.captioner.parameters())
    model.eval()
    (result,) = model(**sample(model, 0, "a dog near a red car"), mode="predict")
    assert result.pred_sem_seg.sem_seg.shape == (1, 64, 100)
    assert torch.equal(contexts[0], contexts[1]), "captions are equal in training and testing"
    encode = model.backbone.encode_prompts
    if name == "own_caption":
        assert torch.equal(contexts[0], encode(["a dog near a red car"] * 2))
    if name == "empty":
        assert torch.equal(contexts[0], model.backbone.empty_context.expand(2, -1, -1))
    if name in ("heuristic", "blip"):
        assert not torch.equal(contexts[0], encode(["", ""]))


@pytest.mark.parametrize("name", ["heuristic", "blip", "own_caption"])
def test_whole_models_in_sixteen_bit(name: str) -> None:
    model = whole_model(name).eval()
    batch = sample(model, 0, "a dog")
    model.set_precision("bf16")
    (result,) = model(**batch, mode="predict")
    assert result.pred_sem_seg.sem_seg.shape == (1, 64, 100)
    if name == "own_caption":  # sentences are still embedded in float32
        tile = torch.zeros(1, 3, 64, 64)
        exact = whole_model(name).captioner(tile, ["a dog"]).context
        assert torch.equal(model.captioner(tile, ["a dog"]).context, exact)


def test_captions_change_the_features() -> None:
    model = whole_model("own_caption").eval()
    features = []
    for caption in ("a dog near a red car", "an empty room", "a dog near a red car"):
        one = sample(model, 0, caption)
        features.append(model.extract_pyramids(list(one["inputs"]), [caption])[0][1])
    assert torch.equal(features[0], features[2]) and not torch.equal(features[0], features[1])


def test_image_without_caption_raises() -> None:
    model = whole_model("own_caption")
    with pytest.raises(DatasetError, match="an image has none"):
        model(**sample(model, 0, None), mode="predict")


@pytest.mark.parametrize("name", ["heuristic", "blip", "own_caption"])
def test_configs_run_on_the_meta_device(name: str) -> None:
    model = build_on_meta(load_model_config(str(CONFIGS / f"ablation/captioner/{name}.py")))
    run_on_meta(model, 512, 700)()
    if name == "blip":
        with flop_counter() as counter:
            model.captioner(torch.empty(3, 3, 512, 512, device="meta"))
        # Two operations per weight (303 M in the vision tower) and token (577).
        tower = 3 * 2 * 303e6 * 577
        assert tower < counter.get_total_flops() < 1.3 * tower


def test_ablation_configs_differ_only_in_the_captioner() -> None:
    base = load_config("ablation/representation/stable_diffusion.py")
    for name in ("empty", "heuristic", "blip", "implicit", "own_caption"):
        row = load_config(f"ablation/captioner/{name}.py")
        assert {**row.model, "captioner": None} == {**base.model, "captioner": None}, name
        assert row.train_pipeline == base.train_pipeline
    for which, split in (("train", "train"), ("val", "val"), ("test", "val")):
        loader = load_config("ablation/captioner/own_caption.py")[f"{which}_dataloader"]
        assert loader.dataset.captions_file == f"annotations/captions_{split}2017.json"


@pytest.mark.parametrize("name", ["heuristic", "blip", "own_caption", "implicit", "empty"])
def test_captioner_without_diffusion_model_raises(name: str) -> None:
    cfg = load_model_config(str(CONFIGS / f"ablation/captioner/{name}.py"))
    cfg.model.backbone = dict(type=NoDiffusion)
    cfg.model.neck = dict(type="FeatureProjection", levels=(4, 8, 16, 32))
    with (
        torch.device("meta"),
        pytest.raises(
            ConfigError, match="Captioner needs .* use DiffusionBackbone, or captioner=None"
        ),
    ):
        build_model(cfg)


class NoDiffusion(Backbone):
    channels, strides = (8,) * 4, (16,) * 4


def test_heuristic_without_clip_raises(encoder: FakeEncoder) -> None:
    with pytest.raises(ValueError, match="set `clip`"):
        HeuristicCaptioner(prompt_encoder=encoder)
