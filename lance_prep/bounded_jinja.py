# ruff: noqa: N802  (jinja2 names the methods)
"""The jinja2 sandbox with the limits of `template_limits`.

A template is compiled to Python code that counts: once per pass through the body of a loop, a macro or a block, and
for everything that it prints, stores in a list, or puts together.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache, update_wrapper
from typing import Any

from jinja2 import TemplateSyntaxError, UndefinedError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter

from lance_prep import template_limits as limits

#: trl's longest template has 19,572 characters. Compiling takes up to 0.1 ms per character.
_LONGEST = 128 << 10
#: What calling a macro costs, as a number of parts.
_CALL = 60
#: So many texts are put together before they are counted.
_CHAIN = 16
_TICK = "tick:"
_OTHER_FILES = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)


class BadTemplate(Exception):
    """A template that cannot be used. The message says why, and in which line if it is known."""


class _CountingCode(CodeGenerator):
    """Compiles a template to Python code that counts."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._chained: dict[int, int] = {}

    def visit_EnvironmentAttribute(self, node: nodes.EnvironmentAttribute, frame: Frame) -> None:
        if node.name.startswith(_TICK):
            self.write(f"environment.tick({node.name.removeprefix(_TICK)})")
        else:
            super().visit_EnvironmentAttribute(node, frame)

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self._chained[id(node)] = 1  # `environment.text` counts it
        self.write("environment.text(")
        if finalize.src is not None:
            self.write(finalize.src)

    def _counted(self, write: Callable[[], None], counted: bool = True) -> None:
        self.write("environment.made(" if counted else "")
        write()
        self.write(")" if counted else "")

    def visit_Add(self, node: nodes.BinExpr, frame: Frame) -> None:
        number = self._chained.get(id(node), 0)
        if isinstance(node.left, nodes.Add):
            self._chained[id(node.left)] = number + 1
        add = super().visit_Add
        self._counted(lambda: add(node, frame), number % _CHAIN == 0)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        if len(node.nodes) > _CHAIN:
            groups = [node.nodes[i : i + _CHAIN] for i in range(0, len(node.nodes), _CHAIN)]
            parts: list[nodes.Expr] = [nodes.Concat(group, environment=self.environment) for group in groups]
            node = nodes.Concat(parts, lineno=node.lineno, environment=self.environment)
        join = super().visit_Concat
        self._counted(lambda: join(node, frame), not self._chained.get(id(node)))

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        write = super().visit_List
        self._counted(lambda: write(node, frame), not _is_fixed(node.items))

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        write = super().visit_Tuple
        self._counted(lambda: write(node, frame), node.ctx == "load" and not _is_fixed(node.items))

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        write = super().visit_Dict
        self._counted(lambda: write(node, frame), not _is_fixed([pair.value for pair in node.items]))

    def _operation(self, name: str, node: nodes.BinExpr, frame: Frame) -> None:
        self.write(f"environment.{name}(")
        self.visit(node.left, frame)
        self.write(", ")
        self.visit(node.right, frame)
        self.write(")")

    def visit_Mul(self, node: nodes.BinExpr, frame: Frame) -> None:
        self._operation("times", node, frame)

    def visit_Pow(self, node: nodes.BinExpr, frame: Frame) -> None:
        self._operation("power", node, frame)

    def visit_Mod(self, node: nodes.BinExpr, frame: Frame) -> None:
        self._operation("modulo", node, frame)


def _is_fixed(items: list[nodes.Expr]) -> bool:
    return all(isinstance(item, nodes.Const) for item in items)


class _Formatter(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        limits.check_spec(format_spec)
        return limits.made(super().format_field(value, format_spec))


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox whose templates count their work with `template_limits.METER`.

    Call `bound` once all filters are there, and `METER.start` before each row.
    """

    code_generator_class = _CountingCode
    intercepted_binops = frozenset(("*", "**", "%"))  # never computed while a template is compiled
    concat = staticmethod(limits.concat)
    tick = staticmethod(limits.tick)
    text = staticmethod(limits.text)
    made = staticmethod(limits.made)
    times = staticmethod(limits.times)
    power = staticmethod(limits.power)
    modulo = staticmethod(limits.modulo)

    def bound(self) -> None:
        """Let filters and functions count, too."""
        self.filters = limits.bounded_filters(self.filters)
        self.globals["range"] = limits.bounded_range

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        for node in source.find_all((nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block)):
            parts = sum(1 for _ in node.find_all(nodes.Node)) + (4 if isinstance(node, nodes.For) else _CALL)
            tick = nodes.EnvironmentAttribute(f"{_TICK}{parts}", lineno=node.lineno, environment=self)
            if isinstance(node, nodes.For) and node.test is not None:
                node.test = nodes.And(tick, node.test, lineno=node.lineno, environment=self)
            node.body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno, environment=self))  # type: ignore[attr-defined]
        return super()._generate(source, *args, **kwargs)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call what a template calls, unless it makes too much."""
        args = limits.pay_for_call(__obj, args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return `str.format` or `str.format_map` with limits; None if the value is neither."""
        if super().wrap_str_format(value) is None:
            return None
        form = str(value.__self__)

        def wrapped(*args: Any, **kwargs: Any) -> str:
            if value.__name__ == "format_map":
                (kwargs,), args = args, ()
            return str(_Formatter(self).vformat(form, args, kwargs))

        return update_wrapper(wrapped, value)


@lru_cache(maxsize=16)
def compile_bounded(environment: BoundedEnvironment, source: str) -> Callable[..., str]:
    """Return a function that renders a template with variables. It does not begin a row.

    Cached: each shard asks for its template, and a long one takes seconds to compile.

    Raises:
        BadTemplate: the text is not a template, or one that is too long or too deep.
    """
    if len(source) > _LONGEST:
        raise BadTemplate(f"it has {len(source):,} characters, and may have {_LONGEST:,}")
    limits.METER.start(None)
    try:
        parsed = environment.parse(source)
        for node in parsed.find_all(_OTHER_FILES):
            word = type(node).__name__.lower().replace("fromimport", "from")
            raise BadTemplate(f"line {node.lineno} uses {{% {word} %}}, and there are no other templates")
        return environment.from_string(source).render
    except TemplateSyntaxError as error:
        raise BadTemplate(f"line {error.lineno}: {error.message}") from error
    except (RecursionError, MemoryError, SyntaxError, ValueError, OverflowError) as error:
        raise BadTemplate("it is nested too deeply to be compiled") from error


def reason_of(error: Exception, source: str) -> str:
    """Return why a template fails for a record.

    The reason names what is missing or forbidden if the template has that name. Names that only the data has would make
    a reason of its own for each row.
    """
    said = " ".join(str(error).split())
    if not isinstance(error, UndefinedError | SecurityError) or len(said) > 200:
        return type(error).__name__
    names = re.findall(r"'([^']*)'", re.sub(r"'\w+' object|'\w+ object'", "", said))
    if not all(name in source for name in names):
        return type(error).__name__
    said = said.removesuffix(".").replace("'dict object'", "an object")
    return said if isinstance(error, UndefinedError) else f"SecurityError: {said}"
