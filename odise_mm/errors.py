"""Exceptions for errors that a user can fix; all of them derive from :class:`OdiseError`.

Each message is one or two sentences that name the culprit and the way out. This module imports
nothing. Any other exception is a bug and keeps its traceback.
"""


class OdiseError(Exception):
    """Base class of errors meant for the user: programs print the message and exit."""


class ConfigError(OdiseError, ValueError):
    """A config that cannot be found or built."""


class DeviceError(OdiseError, RuntimeError):
    """A requested device that is not available or does not support the operation."""


class DeviceMemoryError(OdiseError, RuntimeError):
    """Insufficient device memory. The message suggests which settings to lower."""


class CheckpointError(OdiseError, RuntimeError):
    """A weights file that cannot be read or written."""


class VocabularyError(OdiseError, ValueError):
    """Class names, or a vocabulary file, that cannot be used."""


class ImageError(OdiseError, ValueError):
    """An image that cannot be used."""


class VideoError(OdiseError, ValueError):
    """A video, camera or stream that cannot be read, or a video that cannot be written."""


class PanopticFileError(OdiseError, ValueError):
    """A panoptic JSON or PNG file that is missing or has invalid content."""


class DatasetError(OdiseError, ValueError):
    """Annotations or images of a dataset that are missing, invalid or contradictory."""


class TrainingError(OdiseError, RuntimeError):
    """A training run that cannot start or continue. The message says where to resume it."""


class OutputError(OdiseError, RuntimeError):
    """Results that cannot be written to their destination."""


class EvaluationError(OdiseError, RuntimeError):
    """A failure of some metrics, or of hooks that run after them, while other metrics succeeded.

    Attributes:
        numbers: Results of the metrics that succeeded.
        failures: Reason of each failure, by the name of the metric or hook.
    """

    def __init__(
        self,
        message: str,
        numbers: dict[str, float] | None = None,
        failures: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.numbers = numbers or {}
        self.failures = failures or {}
