"""The error classes that end a command with a sentence instead of a traceback, and their exit codes."""

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_RESUMABLE = 3
EXIT_INTERRUPTED = 130


class AblateError(Exception):
    """Something a user can understand and act on. The message names the thing, its value and the cure."""

    exit_code = EXIT_FAILED


class BadInputError(AblateError):
    """A wrong key, value, path or combination, found before any compute was spent."""

    exit_code = EXIT_BAD_INPUT


class StopTraining(Exception):
    """Raised by a meter: save a checkpoint of the steps that are done, then end as `interrupted`."""


class Superseded(Exception):
    """Raised by a meter: another attempt has taken over this trial. Write nothing more and end."""
