"""Find a tokenizer by name, pin its file, and describe it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from lance_prep.errors import HubUnreachable, SourceNotFound, TokenizerError, UsageError, one_line, translating
from lance_prep.hub_path import hub_api
from lance_prep.hub_session import LIBRARY, guard_session
from lance_prep.layouts import FUNCTION_PREFIX
from lance_prep.recipe import Recipe
from lance_prep.tokenizer.chat import TEMPLATE_FILE, ChatTemplate, find_chat_template, token_text
from lance_prep.tokenizer.made import convert_slow, is_slow, train_sample_tokenizer
from lance_prep.transport import FIRST_ATTEMPTS, Retries

#: Names that tokenizers in common use give their end of text, in the order in which they are tried.
KNOWN_EOS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eot_id|>", "<|im_end|>", "[SEP]", "<end_of_text>")
SIDE_FILES = ("tokenizer_config.json", "special_tokens_map.json")

#: gigatoken takes 16 bytes for every id up to the largest. For one of 4,000,000,000 it asked for 64 GB, and aborted.
MOST_IDS = 1 << 24
#: Largest tokenizer file that is read. Those of large vocabularies have about 35 MB.
MOST_BYTES = 256 << 20


@dataclass(frozen=True)
class TokenizerSpec:
    """A pinned tokenizer.

    Attributes:
        name: as the recipe names it.
        commit: the commit that it was read at; None if it is not from the Hub.
        file: contents of `tokenizer.json`.
        sha256: of `file`.
        vocab_size: one more than the largest id.
        bos_id, eos_id, pad_id: None if the tokenizer has none. `eos_id` is the recipe's `eos_token` if it names one.
        prefix, suffix: what the post-processor puts before and after a text.
        is_template: False if the post-processor does something else; then `tokenizers` itself has to apply it.
        chat: writes conversations, if the recipe has any.
    """

    name: str
    commit: str | None
    file: bytes
    sha256: str
    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    is_template: bool
    chat: ChatTemplate | None = None

    @property
    def key(self) -> str:
        """Identifies the tokenizer and the chat template in a build."""
        return self.sha256 if self.chat is None else f"{self.sha256}+{self.chat.sha256}"

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint16 if the vocabulary fits, else uint32."""
        return np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

    def as_json(self) -> dict[str, Any]:
        """Return all fields but the file and the chat template."""
        return {k: v for k, v in asdict(self).items() if k not in ("file", "chat")}


def load_tokenizer(recipe: Recipe) -> TokenizerSpec:
    """Find and pin the recipe's tokenizer: a `tokenizer.json`, a folder that holds one, or a Hub id.

    A folder may also hold `vocab.json` and `merges.txt` of a GPT-2 tokenizer.

    Raises:
        TokenizerError: the tokenizer is missing or invalid, or lacks `eos_token`.
        UsageError: a revision is given for a tokenizer that is not on the Hub.
        HubUnreachable, AccessDenied, SourceNotFound: the Hub's answer.
    """
    name = recipe.tokenizer
    if name is None:
        raise TokenizerError("the recipe names no tokenizer", "name one with `tokenizer`")
    if name.startswith(FUNCTION_PREFIX):
        raise TokenizerError(
            f"{name} is a Python function, which cannot be found by its name",
            "pass the function itself: `lance_prep.build(..., tokenizer=function)`",
        )
    path = Path(name)
    if recipe.tokenizer_revision is not None and (path.exists() or name == "lance-prep:sample"):
        said = f"tokenizer_revision {recipe.tokenizer_revision!r} is given, and {name} is not read from the Hub"
        raise UsageError(said, "remove tokenizer_revision, or name a tokenizer on the Hub")
    file: bytes
    side: dict[str, Any]
    commit: str | None = None
    if name == "lance-prep:sample":
        file, side = train_sample_tokenizer(), {}
    elif path.exists():
        file, side = _read_local(path)
    else:
        file, side, commit = _read_hub(name, recipe.tokenizer_revision)
    spec = describe(name, file, side, recipe.eos_token, commit)
    if recipe.messages is None:
        return spec
    chat = find_chat_template(name, load_reference(file, name), side, side.get(TEMPLATE_FILE), recipe.chat_template)
    return replace(spec, chat=chat)


def _read_local(path: Path) -> tuple[bytes, dict[str, Any]]:
    file = path / "tokenizer.json" if path.is_dir() else path
    side: dict[str, Any] = {}
    for name in reversed(SIDE_FILES):
        side.update(_read_beside(file.parent / name))
    if (template := file.parent / TEMPLATE_FILE).is_file():
        side[TEMPLATE_FILE] = _decoded(_read_file(template), str(template))
    if not file.exists() and is_slow(path):
        return convert_slow(path, side, _read_beside(path / "added_tokens.json")), side
    if not file.exists():
        raise TokenizerError(
            f"there is no tokenizer.json in {path}, nor vocab.json and merges.txt",
            "give a tokenizer.json, its folder, or a Hub id",
        )
    return _read_file(file), side


def _read_beside(path: Path) -> dict[str, Any]:
    return _parse(_read_file(path), str(path)) if path.exists() else {}


def _read_file(path: Path) -> bytes:
    """Return the content of a file of a tokenizer.

    Raises:
        TokenizerError: it is a FIFO, which would block, or another thing that is not a file; or it is too large.
    """
    if not path.is_file():
        raise TokenizerError(f"{path} is not a file", "give a tokenizer.json, its folder, or a Hub id")
    if (size := path.stat().st_size) > MOST_BYTES:
        said = f"{path} has {size >> 20:,} MiB, and a tokenizer's file may have at most {MOST_BYTES >> 20}"
        raise TokenizerError(said, "check that it is a tokenizer.json of the tokenizers library")
    return path.read_bytes()


def _read_hub(name: str, revision: str | None) -> tuple[bytes, dict[str, Any], str | None]:
    if name.endswith(".json") or name.startswith((".", "/", "~")):
        raise TokenizerError(
            f"no such tokenizer file: {name}", "give a tokenizer.json, its folder, or a Hub id owner/name"
        )
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        RevisionNotFoundError,
    )

    with translating(f"tokenizer {name}"):
        try:
            return _download(name, revision)
        except LocalEntryNotFoundError:  # a subclass of EntryNotFoundError: the Hub was not reached
            raise
        except (EntryNotFoundError, HFValidationError) as error:
            raise TokenizerError(
                f"{name} has no tokenizer.json ({type(error).__name__})",
                "give a Hub id with a tokenizer.json, a tokenizer.json, or its folder",
            ) from error
        except RevisionNotFoundError as error:
            raise SourceNotFound(f"tokenizer {name} has no revision {revision}", "check tokenizer_revision") from error


def _download(name: str, revision: str | None) -> tuple[bytes, dict[str, Any], str | None]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled

    def fetch(file: str, revision: str | None) -> Path:
        guard_session()
        path = hf_hub_download(name, file, revision=revision, local_files_only=cached, library_name=LIBRARY)
        return Path(path)

    cached = False
    try:
        # Ask first: without a network, `hf_hub_download` retries for 24 s.
        retries = Retries(attempts=FIRST_ATTEMPTS)
        retries.call(lambda: hub_api().model_info(name, revision=revision), doing=f"tokenizer {name}")
    except HubUnreachable:
        cached = True
        try:
            fetch("tokenizer.json", revision)
        except LocalEntryNotFoundError:
            cached = False
        if not cached:
            raise
    except OfflineModeIsEnabled:
        cached = True
    file = fetch("tokenizer.json", revision)
    # The snapshot's folder is named after the commit. The other files are read at the same commit.
    commit = file.parent.name
    side: dict[str, Any] = {}
    for other in reversed(SIDE_FILES):
        try:
            side.update(_parse(_read_file(fetch(other, commit)), f"{name}/{other}"))
        except EntryNotFoundError:
            continue
    with suppress(EntryNotFoundError):
        side[TEMPLATE_FILE] = _decoded(_read_file(fetch(TEMPLATE_FILE, commit)), f"{name}/{TEMPLATE_FILE}")
    return _read_file(file), side, commit


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{where} is not UTF-8", "fix or remove it") from error


def _parse(data: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        why = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise TokenizerError(f"{where} is not valid JSON: {why}", "fix or remove it") from error
    return value if isinstance(value, dict) else {}


def describe(
    name: str, file: bytes, side: dict[str, Any], eos_token: str | None = None, commit: str | None = None
) -> TokenizerSpec:
    """Describe a `tokenizer.json` and its side files.

    Raises:
        TokenizerError: not a tokenizer, or `eos_token` is not in its vocabulary.
    """
    tokenizer = load_reference(file, name)
    ids = tokenizer.get_vocab(with_added_tokens=True)
    last = max(ids, key=ids.__getitem__, default="")
    if ids and ids[last] >= MOST_IDS:
        said = f"{name} gives token {last[:60]!r} the id {ids[last]:,}, and ids may be at most {MOST_IDS - 1:,}"
        raise TokenizerError(said, "number the tokens of its tokenizer.json from 0 on")
    if eos_token is not None and eos_token not in ids:
        raise TokenizerError(f"{name} has no token {eos_token!r}", "choose an eos_token that is in its vocabulary")
    named = {
        role: ids.get(token)
        for role in ("bos", "eos", "pad")
        if (token := token_text(side.get(f"{role}_token"))) is not None
    }
    eos = ids[eos_token] if eos_token is not None else named.get("eos")
    if eos is None:
        eos = next((ids[token] for token in KNOWN_EOS if token in ids), None)
    with panics_of(name):
        prefix, suffix, is_template = _affixes(tokenizer)
    return TokenizerSpec(
        name=name,
        commit=commit,
        file=file,
        sha256=hashlib.sha256(file).hexdigest(),
        vocab_size=max(ids.values(), default=-1) + 1,
        bos_id=named.get("bos"),
        eos_id=eos,
        pad_id=named.get("pad"),
        prefix=prefix,
        suffix=suffix,
        is_template=is_template,
    )


@contextmanager
def panics_of(name: str) -> Iterator[None]:
    """Raise a panic of `tokenizers` in the block, which is no `Exception`, as an error of the tokenizer `name`.

    Its regular expressions give up after 10 million steps in one text, and panic.

    Raises:
        TokenizerError: with the library's message.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        said = f"{name} fails on a text: {one_line(error)}"
        raise TokenizerError(said, "correct the regular expression or the template in its tokenizer.json") from error


def load_reference(file: bytes, name: str = "the tokenizer") -> Tokenizer:
    """Return the `tokenizers` object, with truncation and padding off: a dataset keeps whole texts.

    Raises:
        TokenizerError: `file` is not a `tokenizer.json`.
    """
    try:
        tokenizer = Tokenizer.from_buffer(file)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers raises bare Exception, and its panics are BaseExceptions
        raise TokenizerError(
            f"{name} is not a tokenizer file: {error}", "give a tokenizer.json of the tokenizers library"
        ) from error
    if getattr(tokenizer.model, "dropout", None):
        raise TokenizerError(
            f"{name} has BPE dropout {tokenizer.model.dropout}: its ids are random", "set dropout to null in its file"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _affixes(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
    """Return the ids that the post-processor puts around a text, and whether it does nothing else (to four texts)."""
    found = set()
    for text in ("a", "Hello world", "one two three", "1 + 1 = 2"):
        plain = tokenizer.encode(text, add_special_tokens=False).ids
        full = tokenizer.encode(text, add_special_tokens=True).ids
        found.add(_around(plain, full))
    affixes = found.pop()
    if affixes is None or found:
        return (), (), False
    return *affixes, True


def _around(plain: list[int], full: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return tuple(full[:start]), tuple(full[start + len(plain) :])
    return None
