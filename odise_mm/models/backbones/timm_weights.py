"""timm's models by name, and their weights: found, renamed by timm's own rules, all accounted for.

timm's own loader forgives keys that are missing or left over as soon as the classifier is another
one. Here every number of the network is filled from the file, or the file is refused.
"""

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn import init
from torch.overrides import TorchFunctionMode

from odise_mm.checkpoints.hub import hub_file, reaching, url_file
from odise_mm.checkpoints.safe_loading import differences, load_state_dict
from odise_mm.errors import CheckpointError
from odise_mm.models.frozen import same_random_weights
from odise_mm.utils.spelling import is_path, nearest

# The names of the files in timm's repositories on the hub, the first that is there.
HUB_FILES = ("model.safetensors", "pytorch_model.bin")

# MoCo-v3 has two encoders and takes the base one for its own evaluation (main_lincls.py).
_BASE = "base_encoder."

# Beginnings of the names of layers that only pre-training or classification use.
_NOT_FEATURES = frozenset(
    "head head_dist fc classifier lm_head mask_token decoder_embed decoder_pos_embed "
    "decoder_blocks decoder_norm decoder_pred fc_norm".split()
)

_FILLS = {
    *(Tensor.uniform_, Tensor.normal_, Tensor.erfinv_, Tensor.mul_, Tensor.add_, Tensor.clamp_),
    *(init.uniform_, init.normal_, init.constant_, init.kaiming_uniform_),
}
_PATCHING = threading.Lock()


def find_model(model: str, weights: str | None) -> tuple[str, str | None]:
    """timm's full name of a model (with the tag of the weights, if any) and where they are.

    Args:
        model: architecture, with a tag behind a dot or without.
        weights: None, a path, ``pretrained`` (the tag in ``model``, or timm's default) or a tag.

    Returns:
        The name, whose pre-trained config has the normalization, and a path, or None where timm
        knows the place.

    Raises:
        ValueError: no such model or tag; the nearest are named.
        TypeError: no texts.
    """
    import timm

    if not isinstance(model, str):
        raise TypeError(f"model={model!r} must be one of timm's names, timm.list_models()")
    if not isinstance(weights, str | None):
        raise TypeError(f"weights={weights!r} must be 'pretrained', a tag, a file or None")
    arch, tag = timm.models.split_model_name_tag(model)
    if not timm.is_model(arch):
        close = nearest(arch, timm.list_models())
        raise ValueError(f"timm has no model {arch!r}{close or ': see timm.list_models()'}")
    names = (name.partition(".") for name in timm.list_pretrained(f"{arch}*"))
    tags = [found for name, _, found in names if name == arch]
    known = {n.partition(".")[2] for n in timm.models.get_arch_pretrained_cfgs(arch)} | set(tags)
    public = f"those of {arch} are: {', '.join(tags)}" if tags else f"{arch} has none"
    if tag and tag not in known:
        raise ValueError(f"timm has no weights {model}{nearest(tag, tags)}; {public}")
    if weights is None or is_path(weights):
        return model, weights
    if weights == "pretrained":
        weights = tag or timm.get_pretrained_cfg(arch).tag
    elif tag and weights != tag:
        raise ValueError(f"model={model!r} and weights={weights!r} name two tags: drop one")
    if weights not in tags:
        raise ValueError(
            f"weights={weights!r} is neither a file nor one of timm's tags"
            f"{nearest(weights, tags)}; {public}"
        )
    return f"{arch}.{weights}", None


class WithoutDrawing(TorchFunctionMode):
    """Initial values that a file replaces are not drawn: that takes 20 s for a ViT-H."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FILLS:
            tensor = args[0] if args else kwargs["tensor"]
            if isinstance(tensor, nn.Parameter):
                return tensor
        return func(*args, **kwargs)


class TimmWeights:
    """Builds a timm model, prunes it and fills it.

    Args:
        name: timm's, with the tag.
        path: of a local file; None downloads what timm's config names.
    """

    def __init__(self, name: str, path: str | None) -> None:
        self.name = name
        self.path = path
        self._rewrite: Callable | None = None
        self._known: frozenset[str] = frozenset()
        self._other_size: int | None = None

    def build(self, **options: Any) -> nn.Module:
        """The whole network with values still undefined; ``options`` are ``create_model``'s."""
        import timm

        # position tables of some are drawn all the same: nobody else's draws are to move
        with _caught_filter() as caught, same_random_weights(), WithoutDrawing():
            network = timm.create_model(self.name, pretrained=True, **options)
        self._rewrite = caught[-1]
        size = options.get("img_size")
        self._other_size = None if size == network.pretrained_cfg["input_size"][-1] else size
        return network

    def read(self, network: nn.Module) -> dict[str, Tensor]:
        """The file's tensors, named and sized for the whole ``network`` by timm's own rules.

        Position tables and patches of another size are interpolated, relative positions too.

        Raises:
            CheckpointError: nothing usable is there; the message says what was looked for.
        """
        source = self.path or self._download(network.pretrained_cfg)
        self._known = frozenset(network.state_dict())
        state = load_state_dict(source, fits=self._known.__contains__)
        inside = {k.removeprefix(_BASE): v for k, v in state.items() if k.startswith(_BASE)}
        state = inside or state
        if self._rewrite is None:
            return state
        arguments = (state, network)[: len(inspect.signature(self._rewrite).parameters)]
        try:
            return dict(self._rewrite(*arguments))
        # timm's rules are written for the files they know and stumble over any other in any way.
        except Exception as error:
            raise CheckpointError(
                f"{source} holds no weights for timm's {self.name}: timm's rules for its files "
                f"failed ({type(error).__name__}: {error})"
            ) from error

    def fill(self, network: nn.Module, state: dict[str, Tensor]) -> None:
        """Load into the pruned ``network``; what was pruned away may be left over, nothing else.

        Raises:
            CheckpointError: the file is of another model.
        """
        classifiers = network.pretrained_cfg.get("classifier") or ()
        heads = {classifiers} if isinstance(classifiers, str) else set(classifiers)
        heads = {head.partition(".")[0] for head in heads} | _NOT_FEATURES
        wanted = network.state_dict()
        for key in wanted:  # a counter that no arithmetic uses, and that older files lack
            if key.endswith("num_batches_tracked"):
                state.setdefault(key, wanted[key])
        spare = {key for key in state if key in self._known or key.partition(".")[0] in heads}
        wrong = differences(state, wanted, spare)
        if wrong:
            source = self.path or f"timm's file for {self.name}"
            way = "Name the model that the file was made for"
            if self._other_size:  # timm resizes the tables of some models only
                way += f", or leave out image_size={self._other_size}"
            raise CheckpointError(
                f"{source} holds no weights for timm's {self.name}: {wrong}. {way}."
            )
        floats = {
            key: state[key].float() if state[key].is_floating_point() else state[key]
            for key in wanted
        }
        network.load_state_dict(floats, assign=True)

    def fetch(self) -> None:
        """Download what timm's config names; nothing for a local file."""
        import timm

        if self.path is None:
            self._download(timm.get_pretrained_cfg(self.name).to_dict())

    def _download(self, cfg: dict[str, Any]) -> str:
        hub, url = cfg.get("hf_hub_id"), cfg.get("url")
        place = f"https://huggingface.co/{hub}" if hub else url
        files = (cfg["hf_hub_filename"],) if cfg.get("hf_hub_filename") else HUB_FILES
        print_log(f"looking for {self.name} at {place}", logger="current")
        what = f"timm's weights {self.name}"
        file = f"{files[0]} from {place}" if hub else place
        way = (
            f"Check the network, or fetch {file} elsewhere and name the file as `weights`, with "
            f"model={self.name!r}."
        )
        with reaching(f"{what} are not on this machine and could not be downloaded", way):
            if hub:
                return str(hub_file(hub, *files))
            instead = f"name the file as `weights`, with model={self.name!r}"
            return str(url_file(url, what, instead))


@contextmanager
def _caught_filter() -> Iterator[list[Callable | None]]:
    """Inside, timm's loader is told what to load, and how to rename it, and only takes note.

    Each model hands its own function for renaming and resizing to that loader, and to nobody else.
    Other threads get timm's loader as it is.
    """
    from timm.models import _builder

    caught: list[Callable | None] = []
    mine = threading.get_ident()

    def take_note(*args: Any, filter_fn: Callable | None = None, **options: Any) -> None:
        if threading.get_ident() != mine:
            return original(*args, filter_fn=filter_fn, **options)
        caught.append(filter_fn)

    with _PATCHING:
        original = _builder.load_pretrained
        _builder.load_pretrained = take_note
        try:
            yield caught
        finally:
            _builder.load_pretrained = original
