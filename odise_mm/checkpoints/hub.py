"""Downloads of weights from the Hugging Face Hub and from URLs.

All functions that take a source of weights accept these forms:

* ``checkpoints/sd-v1-3.ckpt``, ``checkpoints/stable-diffusion``: a local file or folder;
* ``CompVis/stable-diffusion-v1-3``: a hub id; the required files are downloaded once;
* ``hf://CompVis/cleandift/cleandift_sd21_unet.safetensors``: one file of a hub repository.

Files from the Hugging Face Hub are stored in its cache (``HF_HOME``), files from URLs in torch's
cache (``TORCH_HOME``). All failures are reported as :class:`~odise_mm.errors.CheckpointError`.
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
    """Convert any exception that is raised inside the context to a ``CheckpointError``.

    Args:
        subject: beginning of the message: what could not be fetched.
        way: end of the message: what the user can do, in full sentences.

    Raises:
        CheckpointError: any exception was raised inside.
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # the hub clients have a dozen exception types for this
        offline = f"; {OFFLINE} is set, so nothing is downloaded" if is_offline() else ""
        raise CheckpointError(
            f"{subject} ({type(error).__name__}: {first_line(error)}{offline}). {way}"
        ) from error


def hub_files(repository: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    """Return a local folder with the files of a hub repository that match ``patterns``.

    Files are downloaded once, to the hub's cache.

    Args:
        repository: ``owner/name``.
        patterns: names or patterns of the files.
        revision: branch, tag or commit; None: the main branch.
    """
    from huggingface_hub import snapshot_download

    wanted = {} if revision is None else dict(revision=revision)
    return Path(snapshot_download(repository, allow_patterns=list(patterns), **wanted))


def hub_file(repository: str, *files: str) -> Path:
    """Return the local path of the first of ``files`` that a hub repository has.

    The file is downloaded once, to the hub's cache.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    *earlier, last = files
    for file in earlier:
        try:
            return Path(hf_hub_download(repository, file))
        except LocalEntryNotFoundError:  # no network: the repository may still have the file
            raise
        except EntryNotFoundError:
            continue
    return Path(hf_hub_download(repository, last))


def url_file(url: str, what: str, instead: str = "") -> Path:
    """Return the local path of the file at a URL, which is downloaded once, to torch's cache.

    Args:
        url: address of the file.
        what: description of the file, for messages.
        instead: alternative to the download, for messages.

    Raises:
        CheckpointError: the download failed.
    """
    file = RemoteFile(url)
    path = Path(torch.hub.get_dir()) / "checkpoints" / file.name
    return download(file, path, CheckpointError, what, instead=instead)


def is_cached(repository: str) -> bool:
    """Return whether the hub's cache has a folder for a repository."""
    from huggingface_hub import constants

    return (Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}").is_dir()


def locate(source: str, wanted: str, fetch: Callable[[], Path], origin: str = "") -> Path:
    """Return the local file or folder for ``source``; download it if ``source`` is a hub name.

    Args:
        source: path, hub id or ``hf://`` name, see the module docstring.
        wanted: names of the required files, for messages, such as ``unet/, vae/``.
        fetch: function that downloads the required files of the hub id and returns their folder.
        origin: URL where such files are published, for messages.

    Raises:
        CheckpointError: the path does not exist, or the download failed.
    """
    path = Path(source).expanduser()
    if source.startswith(HUB_FILE):
        owner, _, rest = source.removeprefix(HUB_FILE).partition("/")
        name, _, file = rest.partition("/")
        if not file:
            raise CheckpointError(f"{source}: expected hf://owner/name/file for a file on the hub")
        return _ask_hub(source, file, lambda: hub_file(f"{owner}/{name}", file))
    if path.exists():
        return path
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        by_hand = f" Download it from {origin} and place it there, or use" if origin else " Use"
        raise CheckpointError(
            f"{source}: no such file or folder.{by_hand} an original checkpoint (sd-v1-3.ckpt), a "
            "diffusers folder or a hub id such as CompVis/stable-diffusion-v1-3."
        )
    return _ask_hub(source, wanted, fetch)


def _ask_hub(source: str, wanted: str, fetch: Callable[[], Path]) -> Path:
    repository = "/".join(source.removeprefix(HUB_FILE).split("/")[:2])
    way = (
        "Check the name, the network and `hf auth login`, or use a local file: download "
        f"{wanted} from https://huggingface.co/{repository} by hand and give its path."
    )
    with reaching(f"{source}: not a local path, and the download from the hub failed", way):
        return fetch()
