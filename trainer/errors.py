"""The one exception that the trainer raises on purpose."""


class TrainerError(ValueError):
    """A round cannot continue. The text is one paragraph for the user: what happened, where, and what to do."""
