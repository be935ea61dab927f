"""Lookup of timm models, and strict loading of their weights with timm's conversion rules.

timm's loader ignores missing and unexpected keys if the number of classes differs. Here, a file
must contain all tensors of the network, or it is rejected.
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

# File names in timm's repositories on the hub, in order of preference.
HUB_FILES = ("model.safetensors", "pytorch_model.bin")

# MoCo-v3 has two encoders and uses the base encoder in its evaluation (main_lincls.py).
_BASE = "base_encoder."

# Name prefixes of layers that are only used for pre-training or classification.
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
    """Look up a timm model.

    Args:
        model: name of the architecture, with or without a tag after a dot.
        weights: None, a path, ``pretrained`` (the tag in ``model``, or timm's default) or a tag.

    Returns:
        The full name, including the tag if there is one, and the path of the weights. The path is
        None for weights that timm downloads. timm's config for the full name has the normalization.

    Raises:
        ValueError: unknown model or tag. The message lists similar ones.
        TypeError: ``model`` or ``weights`` is not a string.
    """
    import timm

    if not isinstance(model, str):
        raise TypeError(f"model={model!r} must be a name in timm.list_models()")
    if not isinstance(weights, str | None):
        raise TypeError(f"weights={weights!r} must be 'pretrained', a tag, a file or None")
    arch, tag = timm.models.split_model_name_tag(model)
    if not timm.is_model(arch):
        close = nearest(arch, timm.list_models())
        raise ValueError(f"timm has no model {arch!r}{close or '; see timm.list_models()'}")
    names = (name.partition(".") for name in timm.list_pretrained(f"{arch}*"))
    tags = [found for name, _, found in names if name == arch]
    known = {n.partition(".")[2] for n in timm.models.get_arch_pretrained_cfgs(arch)} | set(tags)
    available = f"tags of {arch}: {', '.join(tags)}" if tags else f"timm has no weights of {arch}"
    if tag and tag not in known:
        raise ValueError(f"timm has no weights {model}{nearest(tag, tags)}; {available}")
    if weights is None or is_path(weights):
        return model, weights
    if weights == "pretrained":
        weights = tag or timm.get_pretrained_cfg(arch).tag
    elif tag and weights != tag:
        raise ValueError(
            f"model={model!r} and weights={weights!r} specify different tags: remove one"
        )
    if weights not in tags:
        raise ValueError(
            f"weights={weights!r} is neither a file nor one of timm's tags"
            f"{nearest(weights, tags)}; {available}"
        )
    return f"{arch}.{weights}", None


class WithoutDrawing(TorchFunctionMode):
    """Context that skips the random initialization of parameters, which takes 20 s for a ViT-H.

    Used if the values are loaded from a file afterwards.
    """

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
    """Weights of a timm model.

    Args:
        name: full name of the timm model, with the tag.
        path: local file. None: download the file in timm's config.
    """

    def __init__(self, name: str, path: str | None) -> None:
        self.name = name
        self.path = path
        self._convert: Callable | None = None
        self._known: frozenset[str] = frozenset()
        self._other_size: int | None = None

    def build(self, **options: Any) -> nn.Module:
        """Build the complete network with undefined values.

        Args:
            options: arguments of ``timm.create_model``.
        """
        import timm

        # Some models initialize position embeddings nevertheless, which must not change the random
        # numbers of the caller.
        with _captured_filter() as captured, same_random_weights(), WithoutDrawing():
            network = timm.create_model(self.name, pretrained=True, **options)
        self._convert = captured[-1]
        size = options.get("img_size")
        self._other_size = None if size == network.pretrained_cfg["input_size"][-1] else size
        return network

    def read(self, network: nn.Module) -> dict[str, Tensor]:
        """Read the file and convert it with timm's rules for this model.

        The rules rename keys and interpolate position embeddings, relative positions and patch
        embeddings of another size.

        Args:
            network: the complete network from :meth:`build`.

        Returns:
            The converted tensors.

        Raises:
            CheckpointError: no usable file was found. The message lists what was expected.
        """
        source = self.path or self._download(network.pretrained_cfg)
        self._known = frozenset(network.state_dict())
        state = load_state_dict(source, fits=self._known.__contains__)
        inside = {k.removeprefix(_BASE): v for k, v in state.items() if k.startswith(_BASE)}
        state = inside or state
        if self._convert is None:
            return state
        arguments = (state, network)[: len(inspect.signature(self._convert).parameters)]
        try:
            return dict(self._convert(*arguments))
        # timm's rules may raise any exception for files of other models.
        except Exception as error:
            raise CheckpointError(
                f"{source} does not contain weights of timm's {self.name}: timm's rules for such "
                f"files failed ({type(error).__name__}: {error})"
            ) from error

    def fill(self, network: nn.Module, state: dict[str, Tensor]) -> None:
        """Load the weights into the pruned network.

        Args:
            network: the network from :meth:`build` after pruning, changed in place.
            state: the result of :meth:`read`. Weights of pruned layers are ignored.

        Raises:
            CheckpointError: the weights belong to another model.
        """
        classifiers = network.pretrained_cfg.get("classifier") or ()
        heads = {classifiers} if isinstance(classifiers, str) else set(classifiers)
        heads = {head.partition(".")[0] for head in heads} | _NOT_FEATURES
        wanted = network.state_dict()
        for key in wanted:  # an unused counter, which old files lack
            if key.endswith("num_batches_tracked"):
                state.setdefault(key, wanted[key])
        spare = {key for key in state if key in self._known or key.partition(".")[0] in heads}
        wrong = differences(state, wanted, spare)
        if wrong:
            source = self.path or f"timm's file for {self.name}"
            hint = "Set `model` to the model of these weights"
            if self._other_size:  # timm does not resize the position embeddings of all models
                hint += f", or remove image_size={self._other_size}"
            raise CheckpointError(
                f"{source} does not contain weights of timm's {self.name}: {wrong}. {hint}."
            )
        floats = {
            key: state[key].float() if state[key].is_floating_point() else state[key]
            for key in wanted
        }
        network.load_state_dict(floats, assign=True)

    def fetch(self) -> None:
        """Download the file in timm's config. Does nothing for a local file."""
        import timm

        if self.path is None:
            self._download(timm.get_pretrained_cfg(self.name).to_dict())

    def _download(self, cfg: dict[str, Any]) -> str:
        hub, url = cfg.get("hf_hub_id"), cfg.get("url")
        place = f"https://huggingface.co/{hub}" if hub else url
        files = (cfg["hf_hub_filename"],) if cfg.get("hf_hub_filename") else HUB_FILES
        print_log(f"loading {self.name} from {place}", logger="current")
        what = f"timm's weights {self.name}"
        file = f"{files[0]} from {place}" if hub else place
        hint = (
            f"Check the network, or download {file} on another machine and set `weights` to the "
            f"file and model={self.name!r}."
        )
        with reaching(f"{what} are not on this machine and could not be downloaded", hint):
            if hub:
                return str(hub_file(hub, *files))
            instead = f"set `weights` to the file and model={self.name!r}"
            return str(url_file(url, what, instead))


@contextmanager
def _captured_filter() -> Iterator[list[Callable | None]]:
    """Replace timm's loader by one that only records the model's conversion function.

    Each model passes its conversion function (renaming and resizing) to the loader; there is no
    other access to it. Other threads get the original loader.
    """
    from timm.models import _builder

    captured: list[Callable | None] = []
    this_thread = threading.get_ident()

    def record(*args: Any, filter_fn: Callable | None = None, **options: Any) -> None:
        if threading.get_ident() != this_thread:
            return original(*args, filter_fn=filter_fn, **options)
        captured.append(filter_fn)

    with _PATCHING:
        original = _builder.load_pretrained
        _builder.load_pretrained = record
        try:
            yield captured
        finally:
            _builder.load_pretrained = original
