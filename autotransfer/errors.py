"""The exceptions a user may meet.

`AutotransferError` is the family root: the command line prints its message without a traceback. Each
subclass is one kind of thing a user can do something about, and each message says what was wrong, where,
what was expected, and what to do.
"""


class AutotransferError(Exception):
    """Anything autotransfer tells a user that they can act on."""


class DatasetError(AutotransferError):
    """The target's files, labels or splits are not usable as they are."""


class SourceError(AutotransferError):
    """A source is unknown, cannot be fetched, or cannot be transferred as asked."""


class SpaceError(AutotransferError):
    """A search space, or an option that overrides one, is not valid."""


class ProxyError(AutotransferError):
    """A proxy is unknown, or not defined for the features and labels it was given."""


class StudyError(AutotransferError):
    """A study cannot be created, resumed or finished."""


class TrainingError(AutotransferError):
    """A training run ended without a usable model (diverged, out of memory)."""


class ModelDirectoryError(AutotransferError):
    """A folder is not a model that autotransfer saved, or is incomplete."""


class SettingsError(AutotransferError):
    """An `AUTOTRANSFER_*` environment variable has a value that is not allowed."""


class CacheError(AutotransferError):
    """The cache folder cannot hold what is needed."""


class DeviceError(AutotransferError):
    """The requested device is not available on this machine."""


class TrackingError(AutotransferError):
    """The MLflow tracking store cannot be reached or written."""
