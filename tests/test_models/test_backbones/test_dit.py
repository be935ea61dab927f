"""Diffusion transformers, compared with the models, pipelines and schedulers of diffusers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
import transformers
from torch import Tensor, nn

from odise_mm.config.building import build_part
from odise_mm.errors import CheckpointError, ConfigError
from odise_mm.models import Condition, DiTBackbone, FeatureProjection, FrozenCLIP
from odise_mm.models.backbones.diffusion.dit_arch import CLASSES, DIT_ARCHITECTURES
from odise_mm.registry import MODELS
from tests.support.parts import TINY_CLIP, relative_error

FAMILIES = ("sd3", "flux", "pixart")
TAPS = {"sd3": (0, 1, 3), "flux": (1, 2, 4), "pixart": (0, 1, 3)}
STEP = 260
family_sweep = pytest.mark.parametrize("family", FAMILIES)


class Tokenizer:
    """Tokens of the empty prompt, in the interface that diffusers' pipelines call."""

    def __init__(self, tokens: Sequence[int], pad: int, length: int) -> None:
        self.tokens, self.pad, self.model_max_length = list(tokens), pad, length

    def tokenize(self, text: str) -> list[str]:
        assert text == ""
        return []

    def __call__(self, texts: Any, max_length: int = 0, **_: Any) -> SimpleNamespace:
        assert list(texts) == [""]
        length = max(max_length, len(self.tokens))
        fill = length - len(self.tokens)
        return SimpleNamespace(
            input_ids=torch.tensor([self.tokens + [self.pad] * fill]),
            attention_mask=torch.tensor([[1] * len(self.tokens) + [0] * fill]),
        )


class Whole:
    """A complete random model of diffusers, with the weights in a folder in diffusers' layout."""

    def __init__(self, family: str, folder: Path) -> None:
        self.family, self.folder = family, folder
        arch = self.arch = DIT_ARCHITECTURES[f"tiny_{family}"]
        torch.manual_seed(5)
        self.transformer = getattr(diffusers, CLASSES[family])(**arch.transformer).eval()
        self.vae = diffusers.AutoencoderKL(**arch.vae).eval()
        self.texts = {}
        for part in arch.text_parts:
            name, fields = arch.text_encoder(part)
            cls = getattr(transformers, name)
            self.texts[part] = cls(cls.config_class(**fields)).eval()
        if family == "pixart":
            self.scheduler = diffusers.DDPMScheduler(beta_start=0.0001, beta_end=0.02)
        else:
            self.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
        parts = dict(transformer=self.transformer, vae=self.vae, scheduler=self.scheduler)
        for part, module in {**parts, **self.texts}.items():
            module.save_pretrained(folder / part)
        for part, token in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
            (folder / part).mkdir()
            text = json.dumps({"pad_token": token})
            (folder / part / "special_tokens_map.json").write_text(text)

    def prompt(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return embedding, whole-text embedding and mask of the empty prompt, by the pipeline."""
        length = self.arch.t5_length
        t5 = Tokenizer([1], 0, length)
        clip = [Tokenizer([49406, 49407], pad, 77) for pad in (49407, 0)]
        parts = dict(transformer=self.transformer, vae=self.vae, scheduler=self.scheduler)
        options = dict(device="cpu", max_sequence_length=length)
        if self.family == "sd3":
            pipeline = diffusers.StableDiffusion3Pipeline(
                **parts, **self.texts, tokenizer=clip[0], tokenizer_2=clip[1], tokenizer_3=t5
            )
            embedding, _, whole, _ = pipeline.encode_prompt(
                "", "", "", do_classifier_free_guidance=False, **options
            )
            return embedding, whole, None
        if self.family == "flux":
            pipeline = diffusers.FluxPipeline(
                **parts, **self.texts, tokenizer=clip[0], tokenizer_2=t5
            )
            embedding, whole, _ = pipeline.encode_prompt("", "", **options)
            return embedding, whole, None
        pipeline = diffusers.PixArtSigmaPipeline(**parts, **self.texts, tokenizer=t5)
        embedding, mask, _, _ = pipeline.encode_prompt(
            "", do_classifier_free_guidance=False, **options
        )
        return embedding, None, mask

    @torch.no_grad()
    def features(self, tiles: Tensor, noise: Tensor, step: int) -> dict[str, dict[int, Tensor]]:
        """Return the inputs of all blocks, and the outputs of their first AdaLN, with hooks."""
        vae = self.vae
        latent = vae.encode(tiles * 2 - 1).latent_dist.mean
        latent = (latent - (vae.config.shift_factor or 0)) * vae.config.scaling_factor
        time = torch.full((len(tiles),), step)
        if self.family == "pixart":
            noisy = self.scheduler.add_noise(latent, noise.expand_as(latent), time)
        else:
            noisy = self.scheduler.scale_noise(latent, time.float(), noise)
        embedding, whole, mask = self.prompt()
        embedding = embedding.expand(len(tiles), -1, -1)
        found: dict[str, dict[int, Tensor]] = {"input": {}, "modulated": {}}

        def watch(number: int, block: nn.Module) -> None:
            def before(_: nn.Module, inputs: tuple, options: dict) -> None:
                found["input"][number] = inputs[0] if inputs else options["hidden_states"]

            def after(_: nn.Module, __: tuple, output: Any) -> None:
                tokens = output[0] if isinstance(output, tuple) else output
                # the single blocks of FLUX.1 normalize the tokens of the text, too
                found["modulated"][number] = tokens[:, -found["input"][number].shape[1] :]

            block.register_forward_pre_hook(before, with_kwargs=True)
            if self.family == "pixart":  # scale and shift are inside the block's forward pass
                block.attn1.register_forward_pre_hook(
                    lambda module, inputs: after(module, inputs, inputs[0])
                )
            else:
                (block.norm1 if hasattr(block, "norm1") else block.norm).register_forward_hook(
                    after
                )

        blocks = [*self.transformer.transformer_blocks]
        blocks += getattr(self.transformer, "single_transformer_blocks", ())
        for number, block in enumerate(blocks):
            watch(number, block)
        common = dict(encoder_hidden_states=embedding)
        if self.family == "sd3":
            whole = whole.expand(len(tiles), -1)
            self.transformer(noisy, pooled_projections=whole, timestep=time, **common)
        elif self.family == "flux":
            pipeline = diffusers.FluxPipeline
            n, c, h, w = noisy.shape
            self.transformer(
                pipeline._pack_latents(noisy, n, c, h, w),
                pooled_projections=whole.expand(n, -1),
                timestep=time / 1000,
                img_ids=pipeline._prepare_latent_image_ids(n, h // 2, w // 2, "cpu", torch.float32),
                txt_ids=torch.zeros(embedding.shape[1], 3),
                guidance=torch.full((n,), 3.5),
                **common,
            )
        else:
            added = {"resolution": None, "aspect_ratio": None}
            mask = mask.expand(len(tiles), -1)
            self.transformer(
                noisy,
                timestep=time,
                added_cond_kwargs=added,
                encoder_attention_mask=mask,
                **common,
            )
        return found


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Whole]:
    return {family: Whole(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}


def tiles() -> Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))


def tiny(family: str, **options: Any) -> DiTBackbone:
    return DiTBackbone(f"tiny_{family}", **{"taps": TAPS[family], **options})


@family_sweep
@pytest.mark.parametrize("modulate", [True, False])
def test_features_are_those_of_diffusers(
    family: str, modulate: bool, wholes: dict[str, Whole]
) -> None:
    whole = wholes[family]
    backbone = DiTBackbone(vars(whole.arch), str(whole.folder), TAPS[family], (STEP,), modulate)
    noise = torch.nn.functional.interpolate(
        backbone.noise, (8, 12), mode="bicubic", align_corners=False
    )
    wanted = whole.features(tiles(), noise, STEP)["modulated" if modulate else "input"]
    with torch.no_grad():
        maps = backbone(tiles())
    for tap, found in zip(TAPS[family], maps, strict=True):
        assert found.shape[-2:] == (4, 6)
        assert relative_error(found.flatten(2).transpose(1, 2), wanted[tap]) < 1e-4


@family_sweep
def test_only_layers_up_to_the_last_tap_are_held(family: str, wholes: dict[str, Whole]) -> None:
    whole = wholes[family]
    backbone = DiTBackbone(vars(whole.arch), str(whole.folder), taps=(0, 1))
    held = dict(backbone.transformer.named_parameters())
    complete = dict(whole.transformer.named_parameters())
    assert all(torch.equal(value, complete[name]) for name, value in held.items())
    blocks = {name for name in held if "transformer_blocks" in name}
    assert any(name.startswith("transformer_blocks.0.attn") for name in blocks)
    rest = {name for name in blocks if not name.startswith("transformer_blocks.0.")}
    kept = ("transformer_blocks.1.norm1.", "transformer_blocks.1.scale_shift_table")
    assert rest and all(name.startswith(kept) for name in rest)
    assert not any(name.startswith(("proj_out", "norm_out", "scale_shift_table")) for name in held)
    assert backbone.vae.decoder is None
    assert {name for name, _ in backbone.named_children()} == {"vae", "transformer"}


@family_sweep
def test_architecture_is_read_from_the_folder(family: str, wholes: dict[str, Whole]) -> None:
    whole = wholes[family]
    folder = str(whole.folder)
    read = DiTBackbone(folder, taps=TAPS[family]).arch
    assert (read.family, read.betas, read.pad_tokens) == (
        whole.arch.family,
        whole.arch.betas,
        whole.arch.pad_tokens,
    )
    assert (
        read.transformer.items()
        >= {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in whole.arch.transformer.items()
        }.items()
    )
    assert read.t5_length == {"flux": 512}.get(family, 256)
    backbone = DiTBackbone(folder, folder, TAPS[family])
    tokens = {"sd3": 77 + 256 + 1, "flux": 513, "pixart": 1}[family]
    assert backbone.empty_context.shape == (1, tokens, 64)
    assert backbone.empty_context.any()


def test_without_t5_its_tokens_are_zeros(wholes: dict[str, Whole]) -> None:
    whole = wholes["sd3"]
    texts = {part: whole.arch.texts[part] for part in ("text_encoder", "text_encoder_2")}
    whole_context = DiTBackbone(vars(whole.arch), str(whole.folder), (0,)).empty_context
    arch = vars(whole.arch) | {"texts": texts}
    context = DiTBackbone(arch, str(whole.folder), (0,)).empty_context
    assert not context[:, 77:-1].any() and whole_context[:, 77:-1].any()
    assert torch.equal(context[:, :77], whole_context[:, :77])
    assert torch.equal(context[:, -1], whole_context[:, -1])


@family_sweep
def test_gradients_reach_the_condition_with_and_without_checkpointing(family: str) -> None:
    grads = []
    for use_checkpoint in (False, True):
        backbone = tiny(family, use_checkpoint=use_checkpoint, steps=(0, 200))
        torch.manual_seed(1)
        context = torch.randn(2, *backbone.empty_context.shape[1:], requires_grad=True)
        time = torch.randn(2, 2, backbone.time_width, requires_grad=True)
        maps = backbone(tiles(), Condition(context, time))
        sum((m * m).mean() for m in maps).backward()
        grads.append((context.grad, time.grad))
        assert context.grad.abs().sum(-1).gt(0).all(), "every row of the condition counts"
        assert time.grad.abs().sum(-1).gt(0).all()
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(*grads, strict=True))


@family_sweep
def test_a_learned_step_gets_a_gradient_and_equals_the_step(family: str) -> None:
    backbone = tiny(family, steps=(STEP,))
    context = backbone.empty_context.expand(2, -1, -1)
    step = torch.tensor(float(STEP), requires_grad=True)
    maps = backbone(tiles(), Condition(context, step=step))
    with torch.no_grad():
        assert all(
            relative_error(a, b) < 1e-5 for a, b in zip(maps, backbone(tiles()), strict=True)
        )
    sum((m * m).mean() for m in maps).backward()
    assert step.grad.abs() > 0


def test_noise_is_that_of_the_schedulers() -> None:
    latent, step = torch.randn(2, 16, 64, 64), torch.tensor([STEP, STEP])
    flow = tiny("flux")
    shift = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    # A shifted schedule samples other steps, but a step has the same level of noise.
    number = 100
    at = shift.timesteps[number]
    wanted = shift.scale_noise(latent, at.expand(2), flow.noise)
    assert relative_error(flow.add_noise(latent, at), wanted) < 1e-5
    plain = diffusers.FlowMatchEulerDiscreteScheduler()
    wanted = plain.scale_noise(latent, step.float(), flow.noise)
    assert relative_error(flow.add_noise(latent, STEP), wanted) < 1e-6
    assert torch.equal(flow.add_noise(latent, 0), latent)
    betas = tiny("pixart")
    latent = latent[:, :4]
    scheduler = diffusers.DDPMScheduler(beta_start=0.0001, beta_end=0.02)
    wanted = scheduler.add_noise(latent, betas.noise.expand_as(latent), step)
    assert relative_error(betas.add_noise(latent, STEP), wanted) < 1e-5


def test_massive_channels_are_normalized() -> None:
    maps = {}
    for modulate in (False, True):
        backbone = tiny("sd3", taps=(2,), modulate=modulate)
        with torch.no_grad():
            backbone.transformer.pos_embed.proj.bias[5] = 300.0
            (maps[modulate],) = backbone(tiles())
    share = {key: m.abs().mean((0, 2, 3)).max() / m.abs().mean() for key, m in maps.items()}
    assert share[False] > 20
    # the norm maps one channel of 32 to at most sqrt(31) standard deviations, at every position
    assert maps[False][:, 5].abs().min() > 100 and maps[True].abs().max() < 20


def neck(backbone: DiTBackbone, **options: Any) -> FeatureProjection:
    torch.manual_seed(0)
    levels = dict(levels=(4, 8, 16, 32), out_channels=32, bottleneck_channels=32)
    cfg = dict(type="FeatureProjection", **levels, **options)
    return build_part(cfg, MODELS, **backbone.describe())


def test_steps_are_joined_with_learned_weights() -> None:
    taps = (0, 1, 2, 3)
    backbone = tiny("sd3", taps=taps, steps=(0, 300, 600))
    joined = neck(backbone, join_steps=True)
    single = [tiny("sd3", taps=taps, steps=(step,)) for step in backbone.steps]
    plain = neck(single[0])
    plain.load_state_dict({k: v for k, v in joined.state_dict().items() if "logits" not in k})
    with torch.no_grad():
        maps = backbone(tiles())
        alone = [each(tiles()) for each in single]
    size = (64, 96)
    mean = [torch.stack(each).mean(0) for each in zip(*alone, strict=True)]
    with torch.no_grad():
        pairs = zip(joined(maps, size), plain(mean, size), strict=True)
        assert all(relative_error(a, b) < 1e-3 for a, b in pairs), "equal weights at the start"

    sum((level * level).mean() for level in joined(maps, size)).backward()
    logits = list(joined.step_logits.values())
    assert len(logits) == len(taps) and all(p.grad.abs().max() > 0 for p in logits)
    with torch.no_grad():
        for p in logits:
            p.copy_(torch.tensor([-50.0, 50.0, -50.0]))
        pairs = zip(joined(maps, size), plain(alone[1], size), strict=True)
        assert all(relative_error(a, b) < 1e-3 for a, b in pairs), "one step has all the weight"


def test_one_step_has_nothing_to_join() -> None:
    backbone = tiny("flux", taps=(0, 1, 2, 3))
    assert neck(backbone, join_steps=True).state_dict().keys() == neck(backbone).state_dict().keys()
    with pytest.raises(ConfigError, match="join_steps=True needs a backbone with diffusion time"):
        FeatureProjection((8,) * 4, (4, 8, 16, 32), 32, 32, join_steps=True)


def test_captioners() -> None:
    backbone = tiny("flux")
    shared = dict(clip=FrozenCLIP(TINY_CLIP), **backbone.describe())
    captioner = build_part(dict(type="ImplicitCaptioner"), MODELS, **shared)
    with torch.no_grad():
        captioner.context_gate.fill_(0.5)
        captioner.time_gate.fill_(0.5)
        changed, empty = backbone(tiles(), captioner(tiles())), backbone(tiles())
    assert all(relative_error(a, b) > 1e-3 for a, b in zip(changed, empty, strict=True))
    with pytest.raises(ValueError, match="CaptionCaptioner needs prompt_encoder"):
        build_part(dict(type="CaptionCaptioner"), MODELS, **shared)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(arch="flux"), ValueError, "unknown diffusion architecture 'flux': use one of"),
        (dict(taps=(1, 5)), ConfigError, "taps contains 5, but the transformer has blocks 0 to 4"),
        (dict(taps=(2, 1)), ConfigError, "must be a list of integers in ascending order"),
        (dict(taps=()), ConfigError, "must be a list of integers in ascending order"),
        (dict(steps=(1000,)), ConfigError, "each at most 999"),
        (dict(arch=dict(family="dit", transformer={}, vae={})), ConfigError, "family='dit'"),
        (dict(arch=dict(family="flux", transformer={}, vae={})), ConfigError, "must contain text"),
        (
            dict(transformer=dict(in_channels=16)),
            ConfigError,
            "16 input channels for a latent with 16",
        ),
        (dict(transformer=dict(pooled_projection_dim=8)), ConfigError, "=8 instead of 32"),
        (dict(transformer=dict(joint_attention_dim=72)), ConfigError, "of width 64 for conditions"),
    ],
)
def test_wrong_settings(arguments: dict[str, Any], error: type, message: str) -> None:
    arch = vars(DIT_ARCHITECTURES["tiny_flux"]).copy()
    arch["transformer"] = arch["transformer"] | arguments.pop("transformer", {})
    with torch.device("meta"), pytest.raises(error, match=message):
        DiTBackbone(**{"arch": arch, **arguments})


def test_tiles_beyond_the_position_embeddings() -> None:
    with pytest.raises(ValueError, match="of 64 x 400 pixels: .* at most 384 x 384"):
        tiny("sd3")(torch.rand(1, 3, 64, 400))


def test_weights_that_cannot_be_read(tmp_path: Path, wholes: dict[str, Whole]) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="are read from diffusers folders"):
        tiny("flux", weights=str(file))
    with pytest.raises(CheckpointError, match="contains no"):
        tiny("flux", weights=str(tmp_path))
    with pytest.raises(CheckpointError, match="transformer weights do not match"):
        arch = dict(vars(wholes["flux"].arch))
        arch["transformer"] = arch["transformer"] | {"guidance_embeds": False}
        DiTBackbone(arch, str(wholes["flux"].folder), (0,))
