"""Templates: jinja2 that makes the text of a record from its columns.

The text must be the same in every run and with every Python. So functions that draw random numbers are removed, a
template that prints an object instead of its content is refused, and a record cannot be changed.
"""

from __future__ import annotations

import datetime
import decimal
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import pyarrow as pa

from lance_prep.errors import ColumnNotFound, UsageError

_PRINTED = (str, int, float, decimal.Decimal, datetime.date, datetime.time, datetime.timedelta)
#: Names of jinja2 that differ between runs, or keep a state.
_REMOVED = ("lipsum", "cycler", "joiner", "namespace")
#: Methods of dates that ask the clock or the time zone of the machine.
_OF_THE_CLOCK = ("now", "today", "utcnow", "timestamp", "astimezone", "fromtimestamp")
# How Python prints an object without a text form of its own: with its address in memory.
_ADDRESS = re.compile(r"<[^<>]{1,200} at 0x[0-9a-f]{4,16}>", re.IGNORECASE)


class TemplatePrints(Exception):
    """A template prints something that is not text, a number or a date; the message says what."""


def compile_template(template: str) -> Callable[[Mapping[str, Any]], str]:
    """Return a function that renders the template for a record. Nulls render as nothing.

    Raises:
        UsageError: not a template; says where.
    """
    from jinja2 import TemplateSyntaxError

    try:
        compiled = _environment().from_string(template)
    except TemplateSyntaxError as error:
        raise _not_jinja(error) from error

    def render(record: Mapping[str, Any]) -> str:
        text = str(compiled.render(record))
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
    from jinja2 import TemplateSyntaxError, meta, nodes

    from lance_prep.filter import describe

    environment = _environment()
    functions = set(environment.globals)
    environment = environment.overlay()
    environment.globals = {}  # so that a column may have the name of a function
    try:
        parsed = environment.parse(template)
        used = meta.find_undeclared_variables(parsed)
    except TemplateSyntaxError as error:
        raise _not_jinja(error) from error
    for node in parsed.find_all(nodes.Filter):
        if node.name not in environment.filters:  # jinja2 itself says so only outside of conditions
            raise _unknown_filter(node.name, node.lineno)
    names = {str(name) for name in used} - (functions - set(schema.names))
    for name in sorted(names - set(schema.names)):
        why = "jinja2 has a function of this name, which lance-prep does not offer, and there is "
        why = why if name in _REMOVED else "the template uses it: "
        raise ColumnNotFound(f"{why}no column {name!r} in the source", f"there are {describe(schema)}")
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
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Environment(ImmutableSandboxedEnvironment):
        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            if isinstance(obj, datetime.date) and attr in _OF_THE_CLOCK:
                return False
            return bool(super().is_safe_attribute(obj, attr, value))

    environment = Environment(undefined=StrictUndefined, finalize=_printed, keep_trailing_newline=True)
    for name in _REMOVED:
        del environment.globals[name]
    del environment.filters["random"]
    return environment


def _printed(value: Any) -> Any:
    """Return what the template prints for a value.

    Raises:
        TemplatePrints: the value has no text form of its own; says what to write instead.
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
        raise TemplatePrints(f"the template prints a {kind}; write {{{{ x | join(', ') }}}} or {{{{ x | tojson }}}}")
    if callable(value):
        raise TemplatePrints("the template prints a method, not its result; write {{ text.upper() }}")
    if isinstance(value, Iterator):
        raise TemplatePrints(f"the template prints a {kind}; write {{{{ x | ... | join(', ') }}}}")
    raise TemplatePrints(f"the template prints a {kind}; it may print text, numbers, dates, true, false and null")


def _check_addresses(text: str, template: str, record: Mapping[str, Any]) -> None:
    """Refuse an object's address in memory that a filter made into text, as in `{{ text.upper | trim }}`.

    Raises:
        TemplatePrints: such an address is in the text, and neither in the record nor in the template.
    """
    for found in set(_ADDRESS.findall(text)):
        if found.lower() not in template.lower() and not _holds(record, found.lower()):
            raise TemplatePrints("the template prints an object with its address in memory; call the method: x.upper()")


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
    return UsageError(said, "use one of jinja2's filters, such as trim, upper, join or tojson")
