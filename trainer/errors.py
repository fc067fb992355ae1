"""The one exception that the trainer raises on purpose."""


class TrainerError(ValueError):
    """Raised when a round cannot continue: unusable data or model, a failed check, NaN, a foreign checkpoint.

    Its text is one paragraph for the user: what happened, where, and what to do.
    """
