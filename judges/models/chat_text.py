"""Tokenises rendered chats: the texts of messages stay texts, even if they hold a special token's name.

`loop.prompts.chat_template` uses it for prompts and answers, the classification models for what they judge.
"""

from collections.abc import Sequence
from typing import Any


def places_of(contents: Sequence[str], text: str) -> list[tuple[int, int]] | None:
    """Where the contents stand in a rendered text, in their order and without overlap; None unless all do. A content
    that a template has trimmed stands where its trimmed text does."""
    places, start = [], 0
    for content in contents:
        for wanted in (content, content.strip()):
            if (at := text.find(wanted, start)) >= 0:
                break
        else:
            return None
        start = at + len(wanted)
        places.append((at, start))
    return places


def ids_of(tokenizer: Any, text: str, contents: Sequence[str]) -> list[int] | None:
    """Token ids of a rendered text. Special tokens count as such outside the contents only; None if that cannot be
    done, because a content with such a name in it is not found in the text."""
    if not any(token in content for token in special_tokens(tokenizer) for content in contents):
        return _encode(tokenizer, text, plain=False)
    places = places_of(contents, text)
    if places is None:
        return None
    ids, end = list[int](), 0
    for start, stop in places:
        ids += _encode(tokenizer, text[end:start], plain=False) + _encode(tokenizer, text[start:stop], plain=True)
        end = stop
    return ids + _encode(tokenizer, text[end:], plain=False)


def special_tokens(tokenizer: Any) -> list[str]:
    """The texts of the tokenizer's special tokens."""
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def _encode(tokenizer: Any, text: str, *, plain: bool) -> list[int]:
    found = tokenizer(text, add_special_tokens=False, **({"split_special_tokens": True} if plain else {}))
    return [int(id) for id in found["input_ids"]]
