"""The layouts: what a row of a dataset is, which options of a recipe each layout reads, and how many rows it makes.

All stages may ask. Importing this module costs nothing: the code that makes rows is loaded when rows are made. A new
layout is a `Layout` that is passed to `register_layout`, and a `RowMaker` (see `lance_prep.layout.base`) that it names:

    register_layout(Layout("sentences", "a sentence", "my_package.sentences:SENTENCES", unit="sentence"))

Every process that builds or reads such a dataset must import the module that registers the layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lance_prep.ledger import Ledger

#: `doc_id = shard << 40 | row`
ROW_BITS = 40
#: Fields of a recipe that may name local files.
PATH_FIELDS = ("source", "tokenizer", "chat_template", "decontaminate")
#: The name recorded for ids that were imported without a tokenizer.
NO_TOKENIZER = "ids:no-tokenizer"
#: Begins the name of a tokenizer that is a Python function (see `tokenizer.function`).
FUNCTION_PREFIX = "python:"

_CHAT = ("messages", "chat_template")
_TEXT = ("text_column", "template", *_CHAT)
_FILTERS = ("min_chars", "max_chars", "language", "language_column", "decontaminate")
_DECONTAMINATE = ("decontaminate_ngram", "decontaminate_drop")
_MINHASH = ("minhash_ngram", "minhash_bands", "minhash_rows")
_DEDUP = ("dedup", "dedup_unit", *_MINHASH)
_TOKENIZER = (
    "tokenizer",
    "tokenizer_revision",
    "tokenizer_backend",
    "special_tokens",
    "add_special_tokens",
    "eos_token",
)
#: Options without effect on a source of ids, which has no text.
_OF_TEXT = (
    *_TEXT,
    "text_unit",
    "delimiter",
    "tokenizer_backend",
    "special_tokens",
    "add_special_tokens",
    "dedup",
    "min_chars",
    "max_chars",
    "max_text_bytes",
    "language",
    "language_column",
    "decontaminate",
    "val_fraction",
    "val_tokens",
    "side",
)


@dataclass(frozen=True)
class Layout:
    """A layout.

    Attributes:
        name: its name in recipes.
        row: what a row is, for messages and help.
        maker: its `RowMaker`, or `module:name` of it.
        unit: what source rows are split into, such as "line". A row then holds one unit, and the ledger's `lines_in`,
            `lines_used`, `lines_empty` and `lines_over_limit` count units. "document" if a row holds a whole document.
        tokens: rows hold token ids, so a tokenizer is needed; else they are the source's records.
        packed: a row is a block of `block_size` tokens and holds several documents.
        by_line: each line of a text file is a source row, unless the recipe says otherwise.
    """

    name: str
    row: str
    maker: Any
    unit: str = "document"
    tokens: bool = True
    packed: bool = False
    by_line: bool = False

    @property
    def splits(self) -> bool:
        """Whether a source row gives several rows, one for each unit."""
        return self.unit != "document"

    @property
    def unread(self) -> dict[str, str]:
        """The options of a recipe that the layout does not read, each with the reason."""
        if self.packed:
            return {"keep_columns": "a block holds several documents, and a column has one value for each"}
        unread = dict.fromkeys(("block_size", "packing"), "only blocks have a size")
        if self.splits or not self.tokens:
            unread["ids_column"] = f"a document of ids is whole, and a row is {self.row}"
        if self.splits:
            unread |= dict.fromkeys(_CHAT, f"a conversation is whole, and a row is {self.row}")
        if not self.tokens:
            unread |= dict.fromkeys(_TEXT, "records are kept as they are")
            unread |= dict.fromkeys((*_TOKENIZER, "max_tokens"), "records are not tokenized")
            unread |= dict.fromkeys(("val_fraction", "val_tokens", "side"), "a split needs the text of a document")
            unread |= dict.fromkeys((*_FILTERS, *_DECONTAMINATE, *_DEDUP), "it is for texts, and records have none")
        return unread

    def rows_of(self, ledger: Ledger, block_size: int | None) -> tuple[int, str]:
        """Return the number of rows that a ledger implies, and what that number counts."""
        if self.packed:
            return (ledger.tokens_written + ledger.padding) // (block_size or 1), "blocks' tokens"
        if self.splits:
            return ledger.lines_used, f"{self.unit}s used"
        return ledger.rows_used, "source rows used"

    def describe(self, recipe: Mapping[str, Any]) -> str:
        """Return the layout with the options that shape a row: `blocks of 1024 tokens, concat`."""
        return self.name + (f" of {recipe['block_size']} tokens, {recipe['packing']}" if self.packed else "")


#: By name, in the order of the help.
LAYOUTS: dict[str, Layout] = {}


def register_layout(layout: Layout) -> None:
    """Make a layout known under its name.

    Raises:
        ValueError: the name is taken.
    """
    if layout.name in LAYOUTS:
        raise ValueError(f"{layout.name!r} is registered already")
    LAYOUTS[layout.name] = layout


register_layout(Layout("lines", "a line", "lance_prep.layout.rows:LINES", unit="line", by_line=True))
register_layout(Layout("documents", "a document", "lance_prep.layout.rows:DOCUMENTS"))
register_layout(Layout("blocks", "a packed block", "lance_prep.layout.blocks:BLOCKS", packed=True))
register_layout(Layout("raw", "the record itself", "lance_prep.layout.rows:RAW", tokens=False, by_line=True))


def unread_options(options: Mapping[str, Any]) -> dict[str, str]:
    """Return the options that have no effect because of others, each with the reason.

    Args:
        options: of a recipe: `layout`, `packing`, `shuffle`, `dedup` and `decontaminate` decide.
    """
    layout = LAYOUTS[options["layout"]]
    unread = {name: f"layout={layout.name!r}: {why}" for name, why in layout.unread.items()}
    if options.get("ids_column") is None:
        unread |= dict.fromkeys(("ids_dtype", "document_end"), "ids_column=None: the source holds text, not ids")
    else:
        unread |= dict.fromkeys(_OF_TEXT, "ids_column: the source holds ids, not text")
    if options["dedup"] == "none":
        unread["dedup_unit"] = "dedup='none': nothing is compared"
    if options["dedup"] != "minhash":
        unread |= dict.fromkeys(_MINHASH, f"dedup={options['dedup']!r}: no minhash is computed")
    if options["decontaminate"] is None:
        unread |= dict.fromkeys(_DECONTAMINATE, "decontaminate is not set: nothing is compared")
    if not options["shuffle"]:
        unread["seed"] = "shuffle=False: it is the seed of the shuffle"
        # A batch of source rows is also the window that best-fit packs.
        if not layout.packed or options["packing"] != "best-fit":
            unread["shuffle_batch_size"] = "shuffle=False: no rows are shuffled together"
    return unread
