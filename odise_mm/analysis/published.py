"""Numbers of the published ODISE implementation, to compare with; nothing else states them.

Parameters and FLOPs were counted in the published code (Stable Diffusion v1, CLIP ViT-L/14-336).
FLOPs: torch's counter, 2 per multiply-add, attention included, one image, names already embedded;
12 classes with 18 synonyms.

Ours agree to the last FLOP where both do the same. They differ in the captioner's CLIP (0.24 %: the
published code projects all 577 tokens, we the class token alone, 0.906 of the 0.908 GFLOP), in the
transformer decoder's masks (the mask features are resized to the size of each layer's attention
instead of full masks), and in the mask embedding (after the last layer only, not after all ten).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedParameters:
    """Parameters of one variant, by the parts that :mod:`parts` names; CLIP counted once."""

    trained: dict[str, int]
    frozen: dict[str, int]

    @property
    def trained_total(self) -> int:
        """All trained parameters."""
        return sum(self.trained.values())

    @property
    def frozen_total(self) -> int:
        """All frozen parameters."""
        return sum(self.frozen.values())


_TRAINED = {
    "captioner": 59_136 + 1_280 + 649_728 + 985_600,
    "feature projection": 5_873_664,
    "pixel decoder": 395_520 + 4_393_920 + 65_792 + 131_584 + 590_336,
    "transformer decoder": 14_458_624,
    # the published head holds the logit scale among these, we hold it with the names
    "mask embedding": 264_193 - 1,
}
_FROZEN = {
    "UNet": 859_520_964,
    "VAE encoder": 34_163_592 + 72,
    "VAE decoder": 49_490_179 + 20,
    "diffusion text encoder": 123_060_480,
    "CLIP image tower": 304_293_888,
    "CLIP text tower": 123_650_305,
}
PARAMETERS = {
    "label": PublishedParameters(_TRAINED | {"names": 197_632 + 1}, _FROZEN),
    # 514 more: "object" or "no object"
    "caption": PublishedParameters(
        _TRAINED | {"transformer decoder": 14_458_624 + 514, "names": 196_864 + 1}, _FROZEN
    ),
}
# Paper, section 4.1: millions of trained and frozen parameters.
PAPER_TRAINED_MILLIONS = 28.1
PAPER_FROZEN_MILLIONS = 1493.8
PAPER_CLIP_IMAGE_SIZE = 224  # what the paper's frozen count presumably was made with
PAPER_MEMORY_GB = 11.9  # peak memory at 1024 x 1024 on a V100

# What the FLOPs were counted with.
COUNTED_CLASSES = 12
COUNTED_SYNONYMS = 18


@dataclass(frozen=True)
class PublishedFlops:
    """FLOPs of one part: what its output needs, and what is computed and thrown away."""

    needed: int
    unused: int = 0

    @property
    def total(self) -> int:
        """All that the published code computes."""
        return self.needed + self.unused


FLOPS: dict[int, dict[str, PublishedFlops]] = {
    512: {
        "captioner's CLIP": PublishedFlops(382_827_506_304),
        "diffusion text encoder": PublishedFlops(0, 13_298_503_680),
        "VAE encoder": PublishedFlops(1_116_658_466_816),
        "UNet": PublishedFlops(740_119_838_720, 63_059_230_720 + 94_371_840),
        "VAE decoder": PublishedFlops(622_921_383_936, 1_891_597_549_568),
        "feature projection": PublishedFlops(31_297_896_448),
        "pixel decoder": PublishedFlops(74_214_014_976),
        "transformer decoder: layers": PublishedFlops(8_566_751_232),
        "transformer decoder: masks": PublishedFlops(8_781_824_000),
        "mask embedding": PublishedFlops(17_301_504_000),
        "MaskCLIP": PublishedFlops(454_807_992_576),
        "post-processing": PublishedFlops(629_145_600),
        "captioner, names and ensemble": PublishedFlops(11_589_632),
    },
    1024: {
        "captioner's CLIP": PublishedFlops(1_531_310_025_216),
        "diffusion text encoder": PublishedFlops(0, 53_194_014_720),
        "VAE encoder": PublishedFlops(4_466_633_867_264),
        "UNet": PublishedFlops(2_960_479_354_880, 252_236_922_880 + 377_487_360),
        "VAE decoder": PublishedFlops(2_491_685_535_744, 7_566_390_198_272),
        "feature projection": PublishedFlops(125_191_585_792),
        "pixel decoder": PublishedFlops(296_856_059_904),
        "transformer decoder: layers": PublishedFlops(26_204_848_128),
        "transformer decoder: masks": PublishedFlops(33_947_648_000),
        "mask embedding": PublishedFlops(67_633_152_000),
        "MaskCLIP": PublishedFlops(454_807_992_576),
        "post-processing": PublishedFlops(2_516_582_400),
        "captioner, names and ensemble": PublishedFlops(21_026_816),
    },
}


def is_published_architecture(model_cfg: dict) -> bool:
    """Whether a config's frozen parts are those of the published model, so that counts compare."""
    clip, backbone = model_cfg.get("clip") or {}, model_cfg.get("backbone") or {}
    captioner = model_cfg.get("captioner") or {}
    return (
        backbone.get("type") == "DiffusionBackbone"
        and backbone.get("arch", "sd_v1") == "sd_v1"
        and len(backbone.get("steps", (0,))) == 1
        and captioner.get("type") == "ImplicitCaptioner"
        and clip.get("model") in ("ViT-L-14-336-quickgelu", "ViT-L-14-336")
    )
