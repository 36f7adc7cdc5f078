"""Find a tokenizer's chat template, and what else is needed to write conversations as transformers does.

A template must say which text the assistant wrote, with `{% generation %}`. Hardly any template on the Hub does. trl
has training templates that do, for the templates that it knows word for word. They are read from the installed package
as files: importing trl would import torch.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lance_prep.errors import TokenizerError
from lance_prep.process import install_advice

TEMPLATE_FILE = "chat_template.jinja"

#: The special tokens that a template may name, as transformers passes them.
_VARIABLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
#: Names that tokens which end an assistant's turn commonly have.
_STOPS = (
    *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<turn|>", "<|end|>", "<|return|>", "<|call|>"),
    *("<|END_OF_TURN_TOKEN|>", "<|endoftext|>", "<|end_of_text|>", "<|eot|>", "</s>", "<end_of_utterance>"),
)
_LARGEST_FILE = 1 << 20
_NAME_FILE = "name a file with a jinja2 template"
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class ChatTemplate:
    """A pinned chat template. JSON both ways.

    Attributes:
        source: the template, jinja2.
        origin: where it is from, for people.
        variables: special tokens by the names that a template uses, such as `bos_token`.
        control: tokens that are plain text if they are written inside a message.
        unsafe: those of them that the tokenizer makes of plain text as well, so that such a message is refused.
        stops: tokens that end an assistant's turn.
    """

    source: str
    origin: str
    variables: dict[str, str]
    control: tuple[str, ...]
    unsafe: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()

    @property
    def file(self) -> bytes:
        """All fields as JSON, as a dataset stores them."""
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True).encode()

    @property
    def sha256(self) -> str:
        """The hash of `file`, which identifies the template in a build."""
        return hashlib.sha256(self.file).hexdigest()

    @property
    def template_sha256(self) -> str:
        """The hash of the template's text."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    @classmethod
    def from_file(cls, data: bytes) -> ChatTemplate:
        """Return what `file` holds.

        Raises:
            ValueError: it is damaged.
        """
        fields = json.loads(data)
        names = ("control", "unsafe", "stops")
        if not isinstance(fields, dict) or set(fields) != set(cls.__dataclass_fields__):
            raise ValueError("the file of the chat template is invalid")
        return cls(**{**fields, **{name: tuple(map(str, fields[name])) for name in names}})


def find_chat_template(
    name: str, tokenizer: Tokenizer, side: Mapping[str, Any], stock: str | None, given: str | None
) -> ChatTemplate:
    """Return the template that writes conversations for a tokenizer.

    Args:
        name: of the tokenizer, for messages.
        side: its `tokenizer_config.json` and `special_tokens_map.json`.
        stock: its `chat_template.jinja`, if it has one.
        given: a file with the template to use instead.

    Raises:
        TokenizerError: the tokenizer has no template, or one that is not jinja2, or that does not say which text the
            assistant wrote.
    """
    if given is not None:
        source, origin = _read_file(given), f"file {Path(given).name}"
    else:
        source, origin = stock or _from_config(name, side), f"tokenizer {name}"
    if not _GENERATION.search(source):
        source, origin = _for_training(source, origin)
    _check_syntax(source, origin)
    variables = {role: token for role in _VARIABLES if (token := token_text(side.get(role))) is not None}
    control = _control_tokens(tokenizer, source, side.get("chat_control_tokens"))
    known = tokenizer.get_vocab(with_added_tokens=True)
    stops = [token for token in (variables.get("eos_token"), *_STOPS) if token in known]
    unsafe = tuple(token for token in control if known[token] in encode_as_text(tokenizer, token))
    return ChatTemplate(source, origin, variables, control, unsafe, tuple(dict.fromkeys(map(str, stops))))


def token_text(token: Any) -> str | None:
    """Return a token as side files write it, as text or as an object; None if it is neither."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _read_file(path: str) -> str:
    try:
        # Reading a pipe would wait forever, and /dev/zero has no end.
        mode, size = Path(path).stat().st_mode, Path(path).stat().st_size
        if not stat.S_ISREG(mode):
            raise OSError("a folder" if stat.S_ISDIR(mode) else "not a regular file")
        if not 0 < size <= _LARGEST_FILE:
            raise OSError(f"{size:,} bytes; a template has 1 to {_LARGEST_FILE:,}")
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"chat_template {path} cannot be read: it is not UTF-8", _NAME_FILE) from error
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise TokenizerError(f"chat_template {path} cannot be read: {said}", _NAME_FILE) from error


def _from_config(name: str, side: Mapping[str, Any]) -> str:
    found = side.get("chat_template")
    if isinstance(found, list):  # named templates
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default")
    if not isinstance(found, str):
        raise TokenizerError(
            f"{name} has no chat template, neither in tokenizer_config.json nor in {TEMPLATE_FILE}",
            "name a tokenizer of a chat model, or give a template with chat_template",
        )
    return found


def _check_syntax(source: str, origin: str) -> None:
    # Importing jinja2 takes 50 ms, which other builds need not wait for.
    from lance_prep.bounded_jinja import BadTemplate, compile_bounded
    from lance_prep.tokenizer.chat_sandbox import chat_environment

    try:
        compile_bounded(chat_environment(), source)
    except BadTemplate as error:
        said = f"the chat template of {origin} cannot be used: {error}"
        raise TokenizerError(said, "fix it, or give another with chat_template") from error


def _for_training(source: str, origin: str) -> tuple[str, str]:
    """Return trl's training template for a template, and its origin.

    Raises:
        TokenizerError: trl is not installed, or has none.
    """
    said = f"the chat template of {origin} does not mark what the assistant wrote with {{% generation %}}"
    yourself = "put {% generation %} and {% endgeneration %} around it in a copy, and pass that with chat_template"
    known = _training_templates()
    if not known:
        raise TokenizerError(f"{said}, and trl is not installed", f"{install_advice('chat')}; or {yourself}")
    for stem, (stock, training) in known.items():
        if stock == source:
            return training, f"trl {version('trl')}, {stem}_training.jinja, for the template of {origin}"
    raise TokenizerError(f"{said}, and trl {version('trl')} has no training template for it", yourself)


@cache
def _training_templates() -> dict[str, tuple[str, str]]:
    """Return the templates that trl knows and its training templates, by name. Does not import trl."""
    spec = find_spec("trl")
    folders = spec.submodule_search_locations if spec is not None else None
    found = {}
    for folder in folders or ():
        for path in sorted(Path(folder, "chat_templates").glob("*_training.jinja")):
            stem = path.name.removesuffix("_training.jinja")
            stock = path.with_name(f"{stem}.jinja")
            if stock.exists():
                found[stem] = (stock.read_text(encoding="utf-8"), path.read_text(encoding="utf-8"))
    return found


def _control_tokens(tokenizer: Tokenizer, source: str, stated: Any) -> tuple[str, ...]:
    """Return the added tokens that are special, or that the template writes, as transformers chooses them."""
    from jinja2 import nodes

    from lance_prep.tokenizer.chat_sandbox import chat_environment

    added = [token for token in tokenizer.get_added_tokens_decoder().values() if token.content]
    if isinstance(stated, list):
        return tuple(token.content for token in added if token.special or token.content in stated)
    parsed = chat_environment().parse(source)
    literals = {node.data for node in parsed.find_all(nodes.TemplateData)}
    literals |= {node.value for node in parsed.find_all(nodes.Const) if isinstance(node.value, str)}
    text = "\0".join(literals)
    return tuple(t.content for t in added if t.special or (t.content in text and not t.content.isspace()))


def encode_as_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of a text in the middle of a conversation, without looking for added tokens.

    As transformers does it: after a newline, which is removed again, so that no space is added before the text.
    """
    newline = tokenizer.encode("\n", add_special_tokens=False).ids
    ids = _plain_ids(tokenizer, f"\n{text}")
    return ids[len(newline) :] if ids[: len(newline)] == newline else _plain_ids(tokenizer, text)


def _plain_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    before = tokenizer.pre_tokenizer
    parts = [part for part, _ in before.pre_tokenize_str(text)] if before is not None else [text]
    return [token.id for part in parts for token in tokenizer.model.tokenize(part)]
