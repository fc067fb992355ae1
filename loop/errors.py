"""Room loop: what stops a command and a person is meant to read."""


class AwaitingLabels(Exception):
    """No failure: all that the machine can do is done, and the text says what people are to do before it goes on.

    The command line prints it and exits with 3.
    """


class UserError(ValueError):
    """A mistake or an obstacle that the user can do something about.

    Its text is one paragraph: what is wrong, where (file, line or key), and what to do. The command line prints it and
    exits with 2; nothing that was finished is lost.
    """


class StoppedAtUntil(Exception):
    """No failure: the run has come to the stage that `--until` named, and stops there."""
