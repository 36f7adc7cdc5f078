"""The sandbox that renders chat templates: what transformers offers to a template, and a fixed clock.

Templates come from the Hub and are not trusted. The assistant's text is put between two noncharacters, which no
valid text contains.
"""

from __future__ import annotations

import datetime
import json
from contextlib import suppress
from functools import cache
from types import BuiltinMethodType
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import LoopContext
from jinja2.utils import Namespace

from lance_prep.bounded_jinja import BoundedEnvironment
from lance_prep.loss_mask import END_LEARN, LEARN
from lance_prep.template_limits import GROWING, made

#: What `strftime_now` tells: the date of Llama 3.1's own template. The clock would make every build differ.
TODAY = datetime.datetime(2024, 7, 26)


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}`: a scope between two marks.

    transformers calls its body as a macro, which takes 3 microseconds more per turn and gives the same text.
    """

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        begin, end = (nodes.Output([nodes.TemplateData(mark)], lineno=line) for mark in (LEARN, END_LEARN))
        return nodes.Scope([begin, *body, end], lineno=line)


class _Dict:
    """`dict` without its attributes, which lead out of the sandbox."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return made(dict(*args, **kwargs))  # type: ignore[no-any-return]

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return made(dict.fromkeys(*args, **kwargs))  # type: ignore[no-any-return]


class _Namespace(Namespace):
    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        values = dict(*args, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no attribute {name!r}")


def _raise_exception(message: Any) -> None:
    raise TemplateError(str(message))


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


#: Attributes that are looked up without the sandbox's checks, which take a third of the time of a template.
_OF_DICTS = frozenset(dir(dict))
_OF_STRINGS = frozenset(name for name in dir(str) if name[0] != "_") - {"format", "format_map"}
#: Methods that are called without the sandbox's checks: their results are no longer than their text.
_CALLED = _OF_STRINGS - GROWING.keys() - {"encode"}
_OF_LOOPS = frozenset({"index", "index0", "first", "last", "previtem", "nextitem", "length", "revindex", "revindex0"})


class _Environment(BoundedEnvironment):
    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return what the sandbox returns for `obj.attribute`, sooner for what templates use most."""
        kind = type(obj)
        if kind is dict:
            if attribute not in _OF_DICTS:
                # The sandbox looks for an attribute first, which raises an exception each time.
                return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        elif (kind is str and attribute in _OF_STRINGS) or (kind is LoopContext and attribute in _OF_LOOPS):
            return getattr(obj, attribute)
        elif kind is _Namespace and attribute[0] != "_":
            with suppress(AttributeError):
                return getattr(obj, attribute)
        return super().getattr(obj, attribute)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call what a template calls; methods of strings without the sandbox's checks."""
        if type(__obj) is BuiltinMethodType and type(__obj.__self__) is str and __obj.__name__ in _CALLED:
            kwargs.pop("_block_vars", None)  # jinja2 adds them to a call inside of a block or a loop
            kwargs.pop("_loop_vars", None)
            return __obj(*args, **kwargs)
        return super().call(__context, __obj, *args, **kwargs)


@cache
def chat_environment() -> BoundedEnvironment:
    """Return the environment that compiles chat templates."""
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    for name in ("lipsum",):
        del environment.globals[name]
    del environment.filters["random"]  # a build must give the same rows again
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": lambda form: TODAY.strftime(form),
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    environment.bound()
    return environment
