"""Templates: jinja2 that makes the text of a record from its columns.

The text must be the same in every run and with every Python. So functions that draw random numbers are removed, a
template that prints an object instead of its content is refused, and a record cannot be changed.

Two filters are added to jinja2's: `turns` writes a conversation, and `fromjson` reads JSON inside a column.
"""

from __future__ import annotations

import datetime
import decimal
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import pyarrow as pa

from lance_prep.errors import ColumnNotFound, UsageError
from lance_prep.template_limits import METER, TooMuch, size_of_record

_PRINTED = (str, int, float, decimal.Decimal, datetime.date, datetime.time, datetime.timedelta)
#: Names of jinja2 that differ between runs, or keep a state.
_REMOVED = ("lipsum", "cycler", "joiner", "namespace")
#: Methods of dates that ask the clock or the time zone of the machine.
_OF_THE_CLOCK = ("now", "today", "utcnow", "timestamp", "astimezone", "fromtimestamp")
# How Python prints an object without a text form of its own: with its address in memory.
_ADDRESS = re.compile(r"<[^<>]{1,200} at 0x[0-9a-f]{4,16}>", re.IGNORECASE)


#: Who speaks in a turn, by the names that datasets give to roles.
_SPEAKERS = {
    **dict.fromkeys(("system", "developer"), "System"),
    **dict.fromkeys(("user", "human", "prompter"), "User"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bard", "bing", "model"), "Assistant"),
    **dict.fromkeys(("tool", "function", "observation"), "Tool"),
}


class NoText(Exception):
    """A template can make no text of a record. The message is the reason, one of few: each is counted by itself."""


def compile_template(template: str) -> Callable[[Mapping[str, Any]], str]:
    """Return a function that renders the template for a record. Nulls render as nothing.

    It raises `NoText` for a record that lacks a value, or that takes more work than `template_limits` allows.

    Raises:
        UsageError: not a template; says where.
    """
    from jinja2 import TemplateSyntaxError

    from lance_prep.bounded_jinja import BadTemplate, compile_bounded, reason_of

    try:
        compiled = compile_bounded(_environment(), template)
    except BadTemplate as error:
        if isinstance(error.__cause__, TemplateSyntaxError):
            raise _not_jinja(error.__cause__) from error
        raise UsageError(f"the template cannot be used: {error}", "such as '{{ title }}'") from error

    def render(record: Mapping[str, Any]) -> str:
        METER.start(record)
        for value in record.values():
            METER.saw(len(value) if isinstance(value, str) else size_of_record(value)[1])
        try:
            text = compiled(record)
        except (MemoryError, NoText):
            raise
        except TooMuch as error:
            raise NoText(str(error)) from error
        except Exception as error:  # a template is the user's code: whatever it raises is about this row
            raise NoText(f"the template fails: {reason_of(error, template)}") from error
        if "0x" in text or "0X" in text:
            _check_addresses(text, template, record)
        return text

    return render


def template_columns(template: str, schema: pa.Schema) -> list[str]:
    """Return the columns that a template reads, sorted.

    Args:
        schema: of all columns of the source.

    Raises:
        UsageError: not a template, or one that prints a method of a string, such as `{{ text.upper }}`.
        ColumnNotFound: the template uses something that is not a column; lists the columns.
    """
    from jinja2 import meta, nodes

    from lance_prep.filter import describe

    compile_template(template)
    environment = _environment()
    functions = set(environment.globals)
    environment = environment.overlay()
    environment.globals = {}  # so that a column may have the name of a function
    parsed = environment.parse(template)
    used = meta.find_undeclared_variables(parsed)
    for node in parsed.find_all(nodes.Filter):
        if node.name not in environment.filters:  # jinja2 itself says so only outside of conditions
            raise _unknown_filter(node.name, node.lineno)
    names = {str(name) for name in used} - (functions - set(schema.names))
    for name in sorted(names - set(schema.names)):
        what = f"the template refers to an unknown column, {name!r}"
        if name in _REMOVED:
            what += " (lance-prep does not offer jinja2's function of this name)"
        raise ColumnNotFound(what, f"use one of the source's columns: {describe(schema)}")
    for output in parsed.find_all(nodes.Output):
        for node in output.nodes:
            if isinstance(node, nodes.Getattr) and isinstance(node.node, nodes.Name):
                at = schema.get_field_index(node.node.name)
                textual = at >= 0 and pa.types.is_string(schema.field(at).type)
                if textual and callable(getattr(str, node.attr, None)):
                    said = f"the template prints the method {node.node.name}.{node.attr}, not its result"
                    raise UsageError(said, f"write {{{{ {node.node.name}.{node.attr}() }}}}")
    return sorted(names)


@cache
def _environment() -> Any:
    from jinja2 import StrictUndefined

    from lance_prep.bounded_jinja import BoundedEnvironment

    class Environment(BoundedEnvironment):
        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            if isinstance(obj, datetime.date) and attr in _OF_THE_CLOCK:
                return False
            return bool(super().is_safe_attribute(obj, attr, value))

    environment = Environment(undefined=StrictUndefined, finalize=_printed, keep_trailing_newline=True)
    for name in _REMOVED:
        del environment.globals[name]
    del environment.filters["random"]
    environment.filters |= {"turns": _turns, "fromjson": _from_json}
    environment.bound()
    return environment


def _turns(conversation: Any) -> str:
    """Write a conversation turn by turn: `User: ...`, a blank line, `Assistant: ...`.

    Turns have `role` and `content`, or `from` and `value`. The conversation may be JSON text. A system turn without
    text says nothing and is left out. A conversation without turns is an empty text.

    Raises:
        NoText: a turn lacks text or a known role, so that writing the rest would change what was said.
    """
    if conversation is None:
        return ""
    turns = _from_json(conversation) if isinstance(conversation, str) else conversation
    if not isinstance(turns, list | tuple):
        raise NoText("the conversation is not a list of turns")
    said = []
    for turn in turns:
        if not isinstance(turn, Mapping):
            raise NoText("a turn of the conversation is not an object with a role and a text")
        speaker = _SPEAKERS.get(str(turn.get("role") or turn.get("from")).strip().lower())
        if speaker is None:
            raise NoText(f"a turn of the conversation has none of the roles {', '.join(_SPEAKERS)}")
        content = turn.get("content")
        text = _content(turn.get("value") if content is None else content)
        if text.strip():
            said.append(f"{speaker}: {text}")
        elif speaker != "System":
            raise NoText("a turn of the conversation has no text")
    return "\n\n".join(said)


def _content(content: Any) -> str:
    """Return the text of a turn, which may be a list of parts as in `[{"type": "text", "text": "Hi"}]`."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list | tuple) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise NoText("a turn of the conversation holds something other than text")
    return "".join(map(str, texts))


def _from_json(text: Any) -> Any:
    if not isinstance(text, str):
        raise NoText("fromjson is given a value that is not text")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NoText("fromjson is given text that is not JSON") from error


def _printed(value: Any) -> Any:
    """Return what the template prints for a value.

    Raises:
        NoText: the value has no text form of its own; says what to write instead.
    """
    if value is None:
        return ""
    if isinstance(value, _PRINTED):
        return value
    from jinja2 import Undefined

    if isinstance(value, Undefined):
        return str(value)  # raises, and says which name is undefined
    kind = type(value).__name__
    if isinstance(value, list | tuple | dict | set):
        raise NoText(f"the template prints a {kind}; write {{{{ x | join(', ') }}}} or {{{{ x | tojson }}}}")
    if callable(value):
        raise NoText("the template prints a method, not its result; write {{ text.upper() }}")
    if isinstance(value, Iterator):
        raise NoText(f"the template prints a {kind}; write {{{{ x | ... | join(', ') }}}}")
    raise NoText(f"the template prints a {kind}; it may print text, numbers, dates, true, false and null")


def _check_addresses(text: str, template: str, record: Mapping[str, Any]) -> None:
    """Refuse an object's address in memory that a filter made into text, as in `{{ text.upper | trim }}`.

    Raises:
        NoText: such an address is in the text, and neither in the record nor in the template.
    """
    for found in set(_ADDRESS.findall(text)):
        if found.lower() not in template.lower() and not _holds(record, found.lower()):
            raise NoText("the template prints an object with its address in memory; call the method: x.upper()")


def _holds(value: Any, text: str) -> bool:
    if isinstance(value, str):
        return text in value.lower()
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return any(_holds(each, text) for each in inside)


def _not_jinja(error: Any) -> UsageError:
    message = str(error.message)
    if message.startswith("No filter named"):
        return _unknown_filter(message.split("'")[1], error.lineno)
    return UsageError(f"the template is not jinja2: {message} (line {error.lineno})", "such as '{{ title }}'")


def _unknown_filter(name: str, line: int) -> UsageError:
    if name == "random":
        said = "its result differs between runs, so that a build could not be repeated"
        return UsageError(f"the template uses the filter random in line {line}: {said}", "leave it out")
    said = f"the template uses an unknown filter {name!r} in line {line}"
    return UsageError(said, "use one of jinja2's filters, such as trim, upper, join or tojson; or turns or fromjson")
