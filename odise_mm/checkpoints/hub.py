"""Weights that other libraries' hubs publish: the one place that fetches them.

Names that are understood everywhere:

* ``checkpoints/sd-v1-3.ckpt``, ``checkpoints/stable-diffusion``: a local file or folder;
* ``CompVis/stable-diffusion-v1-3``: a hub id, of which the named files are downloaded once;
* ``hf://CompVis/cleandift/cleandift_sd21_unet.safetensors``: one file of a hub repository.

The Hugging Face Hub's files go into its own cache (``HF_HOME``), plain addresses into torch's
(``TORCH_HOME``). Whatever goes wrong is one :class:`~odise_mm.errors.CheckpointError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from odise_mm.errors import CheckpointError
from odise_mm.utils.display import first_line
from odise_mm.utils.download import OFFLINE, RemoteFile, download, is_offline

HUB_FILE = "hf://"


@contextmanager
def reaching(subject: str, way: str) -> Iterator[None]:
    """Turn whatever a hub's client raises inside into one message.

    Args:
        subject: what could not be had, as the beginning of the sentence.
        way: what the user can do, as a sentence without its beginning's "Check the network".

    Raises:
        CheckpointError: for any exception.
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # the clients raise a dozen kinds, all meaning the same here
        offline = f"; {OFFLINE} is set, so nothing is downloaded" if is_offline() else ""
        raise CheckpointError(
            f"{subject} ({type(error).__name__}: {first_line(error)}{offline}). {way}"
        ) from error


def hub_files(repository: str, patterns: Sequence[str]) -> Path:
    """Folder with those files of a hub repository that fit the patterns; fetched once."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repository, allow_patterns=list(patterns)))


def hub_file(repository: str, *files: str) -> Path:
    """The first of these files that a hub repository has; fetched once."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    *earlier, last = files
    for file in earlier:
        try:
            return Path(hf_hub_download(repository, file))
        except LocalEntryNotFoundError:  # no network, which says nothing about the repository
            raise
        except EntryNotFoundError:
            continue
    return Path(hf_hub_download(repository, last))


def url_file(url: str, what: str, instead: str = "") -> Path:
    """The file at an address, in torch's cache; fetched once.

    Args:
        what: what it is, for messages.
        instead: what else can be done, for messages.
    """
    file = RemoteFile(url)
    path = Path(torch.hub.get_dir()) / "checkpoints" / file.name
    return download(file, path, CheckpointError, what, instead=instead)


def is_cached(repository: str) -> bool:
    """Whether there is anything of a repository in the hub's cache."""
    from huggingface_hub import constants

    return (Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}").is_dir()


def locate(source: str, wanted: str, fetch: Callable[[], Path], origin: str = "") -> Path:
    """The local file or folder that ``source`` names, which is downloaded if it is a hub name.

    Args:
        source: see the module's docstring.
        wanted: what is looked for, for the messages: ``unet/, vae/``.
        fetch: downloads the wanted files of a hub id and returns their folder.
        origin: an address where such files are published, for the messages.

    Raises:
        CheckpointError: there is no such path, or the hub does not answer.
    """
    path = Path(source).expanduser()
    if source.startswith(HUB_FILE):
        owner, _, rest = source.removeprefix(HUB_FILE).partition("/")
        name, _, file = rest.partition("/")
        if not file:
            raise CheckpointError(f"{source}: a file on the hub is named hf://owner/name/file")
        return _ask_hub(source, file, lambda: hub_file(f"{owner}/{name}", file))
    if path.exists():
        return path
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        by_hand = (
            f" Fetch it from {origin} by hand and place it there, or name" if origin else " Name"
        )
        raise CheckpointError(
            f"{source}: no such file or folder.{by_hand} an original checkpoint (sd-v1-3.ckpt), a "
            "diffusers folder or a hub id such as CompVis/stable-diffusion-v1-3."
        )
    return _ask_hub(source, wanted, fetch)


def _ask_hub(source: str, wanted: str, fetch: Callable[[], Path]) -> Path:
    repository = "/".join(source.removeprefix(HUB_FILE).split("/")[:2])
    way = (
        "Check the name, the network and `huggingface-cli login`, or name a local file: fetch "
        f"{wanted} from https://huggingface.co/{repository} by hand and name where it lies."
    )
    with reaching(f"{source}: neither a local path nor to be had from the hub", way):
        return fetch()
