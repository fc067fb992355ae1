"""Exceptions that stop a command with a message for the user."""


class AwaitingLabels(Exception):
    """No failure: the text says what people must do before the run can continue; the command line exits with 3."""


class UserError(ValueError):
    """A mistake or an obstacle that the user can do something about. Its text is one paragraph: what is wrong, where
    (file, line or key), and what to do. The command line prints it and exits with 2; nothing finished is lost."""


class StoppedAtUntil(Exception):
    """No failure: the run has come to the stage that `--until` named, and stops there."""
