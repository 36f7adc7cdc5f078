"""Token ids to the pieces of text that they stand for, so that each token can be shown by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Piece:
    """A part of a text, and the tokens that it is decoded from.

    Attributes:
        text: decoded. A character that is made of several tokens is one piece with all of them.
        start, stop: positions of its tokens in the list of ids.
    """

    text: str
    start: int
    stop: int


def text_pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[Piece]:
    """Decode ids, special tokens included, and return the text in pieces of as few tokens as possible.

    Joined, the pieces are the decoded text, except for ids at the end that are no whole character: these are a last
    piece with the replacement character. Ids beyond the vocabulary are shown as `<id 70000>`.
    """
    from tokenizers.decoders import DecodeStream

    pieces: list[Piece] = []
    stream, start = DecodeStream(skip_special_tokens=False), 0
    for position, token in enumerate(ids):
        if tokenizer.id_to_token(token) is None:
            if start < position:
                pieces.append(Piece("\ufffd", start, position))
            pieces.append(Piece(f"<id {token}>", position, position + 1))
            stream, start = DecodeStream(skip_special_tokens=False), position + 1
            continue
        try:
            text = stream.step(tokenizer, token)
        except Exception:  # the decoder gives up on bytes that no text has, and raises a plain Exception
            stream, text = DecodeStream(skip_special_tokens=False), "\ufffd"
        if text is not None:
            pieces.append(Piece(text, start, position + 1))
            start = position + 1
    if start < len(ids):
        pieces.append(Piece("\ufffd", start, len(ids)))
    return pieces
