"""Room loop: the error that a person is meant to read."""


class UserError(ValueError):
    """A mistake or an obstacle that the user can do something about.

    Its text is one paragraph: what is wrong, where (file, line or key), and what to do. The command line prints it and
    exits with 2; nothing that was finished is lost.
    """
