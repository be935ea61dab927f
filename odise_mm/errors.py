"""What a user can set right: every error of the package that is not a bug derives from one class.

Each message is one sentence or two that name the culprit and the way out. Imports nothing.
"""


class OdiseError(Exception):
    """Base of all errors whose message is meant for the user; programs print it and stop."""


class ConfigError(OdiseError, ValueError):
    """A config that cannot be found or built. The message says which and what to do."""


class DeviceError(OdiseError, RuntimeError):
    """A device that was asked for and is not there, or that cannot do what was asked for."""


class DeviceMemoryError(OdiseError, RuntimeError):
    """The device's memory does not suffice. The message says what to lower."""


class CheckpointError(OdiseError, RuntimeError):
    """A weights file cannot be read or written; the message names the file and the way out."""


class VocabularyError(OdiseError, ValueError):
    """Names, or a file of names, that cannot be used; the message says which and why."""


class ImageError(OdiseError, ValueError):
    """An image that cannot be used. The message names it and says what to do."""


class PanopticFileError(OdiseError, ValueError):
    """A panoptic JSON or PNG file that does not hold what it should."""


class DatasetError(OdiseError, ValueError):
    """Annotations or images of a dataset that are missing or contradict each other."""


class TrainingError(OdiseError, RuntimeError):
    """Training that cannot start or go on. The message says why and where it can be resumed."""


class OutputError(OdiseError, RuntimeError):
    """Results that cannot be written where they should go. The message says why."""


class EvaluationError(OdiseError, RuntimeError):
    """Metrics, or hooks after them, that failed while there are numbers of others.

    Attributes:
        numbers: what the others say.
        failures: why a metric or a hook failed, by its name.
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
