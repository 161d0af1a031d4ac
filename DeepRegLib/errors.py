"""The errors that DeepReg raises on purpose.

Every message is one or two sentences for the person who ran the registration: what was expected,
what came, and what to do about it.
"""


class DeepRegError(Exception):
    """Base of every error that DeepReg raises on purpose."""


class InputError(DeepRegError, ValueError):
    """An image, mask, label map or landmark list that cannot be registered as it is."""


class ParameterError(DeepRegError, ValueError):
    """An unknown algorithm or parameter, or a value outside its range."""


class FileFormatError(DeepRegError, ValueError):
    """A file that is missing, damaged, of the wrong kind, or cannot be written."""


class GeometryError(DeepRegError, ValueError):
    """A grid, matrix, field or point list whose shape or values make no sense."""


class OutOfMemoryError(DeepRegError):
    """The device has too little memory, also after every fallback."""


class WorkerError(DeepRegError):
    """The worker process ended, or answered something that is not an event."""


class Cancelled(DeepRegError):
    """The user cancelled the run; nothing was written."""
