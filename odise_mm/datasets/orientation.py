"""EXIF orientation of a dataset's images."""

from __future__ import annotations

from typing import Any

from odise_mm.errors import ConfigError
from odise_mm.utils.settings import check_flag

# mmengine's datasets accept any value for these flags.
_FLAGS = ("test_mode", "reduce_zero_label", "lazy_init", "serialize_data")


def check_exif(exif: Any, where: str) -> bool | None:
    """Return the setting ``exif`` if it is valid.

    Args:
        exif: True, False or None.
        where: class that has the setting, for the message.

    Raises:
        ConfigError: another value.
    """
    if exif is not None and not isinstance(exif, bool):
        raise ConfigError(
            f"{where}(exif={exif!r}): set True to rotate images by their EXIF orientation, or "
            "False to keep pixels as stored"
        )
    return exif


class OrientedImages:
    """Mixin for datasets that rotates images by their EXIF orientation.

    The setting must match the images that were annotated. By default, images are rotated upright,
    unless a ``LoadImage`` of the pipeline specifies ``exif=False``. Code that reads an image of the
    dataset finds the setting in ``get_data_info(index)["exif"]``; if the key is missing, images are
    rotated.

    Args:
        exif: True rotates images upright, False keeps pixels as stored.
        pipeline: transforms, already built.

    Raises:
        ConfigError: another value, a contradiction between dataset and pipeline, or a flag of
            mmengine's that is neither True nor False.
    """

    def __init__(self, *args: Any, exif: bool | None = None, **kwargs: Any) -> None:
        name = type(self).__name__
        for flag in _FLAGS:
            check_flag(flag, kwargs.get(flag, False))
        settings = {check_exif(exif, name)} | {
            getattr(step, "exif", None) for step in kwargs.get("pipeline") or ()
        }
        settings.discard(None)
        if len(settings) > 1:
            raise ConfigError(
                f"{name}(exif={exif!r}): contradicts exif of a LoadImage in its pipeline; set it "
                "in one place only"
            )
        self.exif: bool = settings.pop() if settings else True
        super().__init__(*args, **kwargs)

    def get_data_info(self, idx: int) -> dict:
        """Extend mmengine's method: add ``exif=False`` if pixels are kept as stored."""
        info = super().get_data_info(idx)
        if not self.exif:
            info["exif"] = False
        return info
