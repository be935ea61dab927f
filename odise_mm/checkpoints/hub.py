"""Where the files of a diffusion model lie: a local path, or the hub, from where they are fetched.

Names that are understood everywhere:

* ``checkpoints/sd-v1-3.ckpt``, ``checkpoints/stable-diffusion``: a local file or folder;
* ``CompVis/stable-diffusion-v1-3``: a hub id, of which the named files are downloaded once;
* ``hf://CompVis/cleandift/cleandift_sd21_unet.safetensors``: one file of a hub repository.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from odise_mm.errors import CheckpointError
from odise_mm.utils.display import first_line

HUB_FILE = "hf://"


def locate(source: str, wanted: str, download: Callable[[], Path], origin: str = "") -> Path:
    """The local file or folder that ``source`` names, which is downloaded if it is a hub name.

    Args:
        source: see the module's docstring.
        wanted: what is looked for, for the messages: ``unet/, vae/``.
        download: fetches the wanted files of a hub id and returns their folder.
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
        return _ask_hub(source, file, lambda: _download_file(f"{owner}/{name}", file))
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
    return _ask_hub(source, wanted, download)


def _download_file(repository: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repository, file))


def _ask_hub(source: str, wanted: str, download: Callable[[], Path]) -> Path:
    repository = "/".join(source.removeprefix(HUB_FILE).split("/")[:2])
    try:
        return download()
    except Exception as error:  # the hub client raises a dozen kinds, all meaning the same here
        raise CheckpointError(
            f"{source}: neither a local path nor to be had from the hub "
            f"({type(error).__name__}: {first_line(error)}). Check the name, the network and "
            f"`huggingface-cli login`, or name a local file: fetch {wanted} from "
            f"https://huggingface.co/{repository} by hand and name where it lies."
        ) from error
