"""What decides a score in another file than the judge's: the version covers it, too."""


def found(words: tuple[str, ...], text: str) -> int:
    """How many of the words are in the text."""
    return sum(word in text for word in words)
