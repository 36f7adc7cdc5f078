"""The layouts: what a row of a dataset is, and which options of a recipe each layout reads.

Pure facts, for all stages. How rows are made is in the package `layout`, one class for each layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Layout:
    """A layout.

    Attributes:
        name: its name in recipes.
        row: what a row is, for messages and help.
        tokens: rows hold token ids, so a tokenizer is needed; else they are the source's records.
        packed: a row is a block of `block_size` tokens and holds several documents.
        by_line: a row is a line of a text, so a text file is read line by line too.
        unread: the recipe's options that the layout does not read, each with the reason.
    """

    name: str
    row: str
    tokens: bool = True
    packed: bool = False
    by_line: bool = False
    unread: Mapping[str, str] = field(default_factory=dict)


_ONLY_BLOCKS = dict.fromkeys(("block_size", "packing"), "only blocks have a size")
_TEXT = ("text_column", "template")
_TOKENIZER = (
    "tokenizer",
    "tokenizer_revision",
    "tokenizer_backend",
    "special_tokens",
    "add_special_tokens",
    "eos_token",
)

#: By name, in the order of the help.
LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("lines", "a line", by_line=True, unread=_ONLY_BLOCKS),
        Layout("documents", "a document", unread=_ONLY_BLOCKS),
        Layout(
            "blocks",
            "a packed block",
            packed=True,
            unread={"keep_columns": "a block holds several documents, and a column has one value for each"},
        ),
        Layout(
            "raw",
            "the record itself",
            tokens=False,
            by_line=True,
            unread={
                **_ONLY_BLOCKS,
                **dict.fromkeys(_TEXT, "records are kept as they are"),
                **dict.fromkeys(_TOKENIZER, "records are not tokenized"),
            },
        ),
    )
}


def unread_options(options: Mapping[str, Any]) -> dict[str, str]:
    """Return the options that have no effect beside the others, each with the reason.

    Args:
        options: of a recipe: `layout`, `packing` and `shuffle` decide.
    """
    layout = LAYOUTS[options["layout"]]
    unread = {name: f"layout={layout.name!r}: {why}" for name, why in layout.unread.items()}
    if not options["shuffle"]:
        unread["seed"] = "shuffle=False: it is the seed of the shuffle"
        # A batch of source rows is also the window that best-fit packs.
        if not layout.packed or options["packing"] != "best-fit":
            unread["shuffle_batch_size"] = "shuffle=False: no rows are shuffled together"
    return unread
