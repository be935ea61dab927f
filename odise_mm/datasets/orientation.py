"""Which way up a dataset's images are: turned by their EXIF orientation, or as stored."""

from __future__ import annotations

from typing import Any

from odise_mm.errors import ConfigError
from odise_mm.utils.settings import check_flag

# Of mmengine's datasets, which take any value for one or the other.
_FLAGS = ("test_mode", "reduce_zero_label", "lazy_init", "serialize_data")


def check_exif(exif: Any, where: str) -> bool | None:
    """A setting ``exif`` as it is, if it is one.

    Raises:
        ConfigError: neither True nor False nor None.
    """
    if exif is not None and not isinstance(exif, bool):
        raise ConfigError(
            f"{where}(exif={exif!r}): True turns images upright by their EXIF orientation, False "
            "takes their pixels as stored"
        )
    return exif


class OrientedImages:
    """Mixin of datasets: ``exif`` says whether pictures are turned by their EXIF orientation.

    It must be what the annotations were made on. By default pictures are turned upright, unless a
    ``LoadImage`` of the pipeline says otherwise. Everything that reads a picture of the dataset
    finds the choice in ``get_data_info(index)["exif"]``; where it is missing, pictures are turned.

    Args:
        exif: True: upright; False: pixels as stored.
        pipeline: steps, built already.

    Raises:
        ConfigError: another value, the pipeline says the contrary, or a flag of mmengine's is
            neither True nor False.
    """

    def __init__(self, *args: Any, exif: bool | None = None, **kwargs: Any) -> None:
        name = type(self).__name__
        for flag in _FLAGS:
            check_flag(flag, kwargs.get(flag, False))
        said = {check_exif(exif, name)} | {
            getattr(step, "exif", None) for step in kwargs.get("pipeline") or ()
        }
        said.discard(None)
        if len(said) > 1:
            raise ConfigError(
                f"{name}(exif={exif!r}): a LoadImage of its pipeline says the contrary; say it in "
                "one place"
            )
        self.exif: bool = said.pop() if said else True
        super().__init__(*args, **kwargs)

    def get_data_info(self, idx: int) -> dict:
        """As mmengine; with ``exif=False`` where pixels are taken as stored."""
        info = super().get_data_info(idx)
        if not self.exif:
            info["exif"] = False
        return info
