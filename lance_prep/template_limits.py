"""Limits on the work that a template may do for one row.

A template may be a stranger's, and so may the rows. Two lines of jinja2 can loop for hours or fill the memory. A clock
would not do as a limit: a row that a slow machine rejects would be written by a fast one. So `METER` counts work
instead. A pass through a loop or a macro costs as much as its body has parts, and what is made of text, lists and
numbers costs its size. A row may use 32 million units, and 16 more for each character of its record. The attacks in
`tests/test_template_limits.py` take 4 seconds at most until they are stopped. trl's template for Qwen3 uses 1,500 units
per message.

What makes much of little (`*`, `|center`, `%`) is paid for before it is made, so memory is bounded as well.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import Any

BASE = 32 << 20
PER_CHARACTER = 16
#: Units for each part of a loop's body.
_PART = 4
#: A part may go through the longest text that there is, so it costs one unit more for each of these characters.
LONG = 1 << 14
_ITEM = 64
_MOST = 100_000
_MOST_BITS = 8192
_MOST_INDENT = 32

_WIDTH = re.compile(r"\d+")
_STAR = re.compile(r"%(\([^)]*\))?[-+ #0]*(\*|\d*\.\*)")
_SIZED = (str, list, tuple, dict, set, range)


class TooMuch(Exception):
    """A template does more for a row than it may. The message is one of few, since each is counted as a reason."""


class Meter(threading.local):
    """What the row that this thread renders may still use.

    Attributes:
        left: units.
        part: units for each part of a loop's body.
        record: the row, until its size has been added to `left`. Hardly any row needs that.
    """

    left = BASE
    part = _PART
    record: Any = None

    def start(self, record: Any) -> None:
        """Begin a row. `saw` must be called for its long texts."""
        self.left, self.part, self.record = BASE, _PART, record

    def saw(self, length: int) -> None:
        """Make the parts of loops cost more, because there is a text or a list of this length."""
        self.part = max(self.part, _PART + length // LONG)

    def most(self) -> int:
        """Return what is left at most."""
        if self.record is not None:
            self.left += PER_CHARACTER * size_of_record(self.record)[0]
            self.record = None
        return self.left

    def overdrawn(self) -> None:
        """Add what a large record may use more.

        Raises:
            TooMuch: that is not enough either.
        """
        if self.most() < 0:
            raise TooMuch("the template loops too long, or makes too much text of one row")


METER = Meter()


def charge(units: int) -> None:
    """Count units.

    Raises:
        TooMuch: none are left.
    """
    METER.left = left = METER.left - units
    if left < 0:
        METER.overdrawn()


def tick(parts: int) -> bool:
    """Count a pass through a body of this many parts, and return true."""
    METER.left = left = METER.left - parts * METER.part
    if left < 0:
        METER.overdrawn()
    return True


def made(value: Any) -> Any:
    """Count the size of a value that was made, and return it."""
    kind = type(value)
    if kind is str:
        size = len(value)
        if size > LONG:
            METER.saw(size)
        METER.left = left = METER.left - size
        if left < 0:
            METER.overdrawn()
    elif kind is not int and kind is not bool:
        charge(expanded(value, METER.most()))
    return value


def text(value: Any) -> str:
    """Return what a template prints for a value, and count it."""
    if type(value) is not str:
        value = str(value)
    METER.left = left = METER.left - len(value)
    if left < 0:
        METER.overdrawn()
    return value  # type: ignore[no-any-return]


def concat(parts: Iterable[str]) -> str:
    """Join what a template printed, and count it before."""
    parts = list(parts)
    charge(sum(map(len, parts)))
    return "".join(parts)


def expanded(value: Any, most: int, indent: int = 0) -> int:
    """Return the size of a value if it were written out: a list that is in it twice counts twice.

    Without this, 40 steps of `[x, x]` make a list that takes hours to print or to compare.

    Args:
        most: stop beyond this.
        indent: characters that each item of each level is indented by.
    """
    if isinstance(value, str | bytes):
        return len(value)
    total, waiting = 0, [(value, 0)]
    while waiting and total <= most:
        each, depth = waiting.pop()
        if isinstance(each, Mapping):
            total += (_ITEM + indent * depth) * len(each) + sum(len(key) for key in each if isinstance(key, str))
            inside: Iterable[Any] = each.values()
        elif isinstance(each, list | tuple | set | frozenset):
            total += (_ITEM + indent * depth) * len(each)
            inside = each
        else:
            total += len(each) if isinstance(each, str | bytes | range) else 1
            continue
        for item in inside:
            if isinstance(item, str):
                total += len(item)
            elif isinstance(item, list | tuple | set | frozenset | Mapping):
                waiting.append((item, depth + 1))
    return total


def size_of_record(record: Any) -> tuple[int, int]:
    """Return the number of characters in a record, and in its longest text or list."""
    total = longest = 0
    waiting = [record]
    while waiting:
        each = waiting.pop()
        if isinstance(each, str | bytes):
            size = len(each)
        elif isinstance(each, Mapping):
            size = 8 * len(each)
            waiting.extend(each.values())
        elif isinstance(each, list | tuple):
            size = 8 * len(each)
            waiting.extend(each)
        else:
            continue
        total += size
        longest = max(longest, size)
    return total, longest


def times(left: Any, right: Any) -> Any:
    """`left * right`."""
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > _MOST_BITS:
            raise _too_large()
    elif isinstance(right, int) and not isinstance(left, float):
        _pay_times(left, right)
    elif isinstance(left, int) and not isinstance(right, float):
        _pay_times(right, left)
    return left * right


def _pay_times(value: Any, count: int) -> None:
    if count > 0 and isinstance(value, str | bytes | list | tuple):
        charge(max(expanded(value, METER.most()), len(value)) * count)


def power(left: Any, right: Any) -> Any:
    """`left ** right`."""
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * abs(right) > _MOST_BITS:
        raise _too_large()
    return left**right


def modulo(left: Any, right: Any) -> Any:
    """`left % right`: a remainder, or a text with values in it."""
    if isinstance(left, str | bytes):
        form = left if isinstance(left, str) else left.decode("latin-1")
        _check_widths(form)
        values = right if isinstance(right, tuple) else (right,)
        if _STAR.search(form) and any(isinstance(each, int) and abs(each) > _MOST for each in values):
            raise _too_large()
        size = expanded(right, METER.most())
        charge(len(form) + size * (form.count("%") if isinstance(right, Mapping) else 1))
    return left % right


def _check_widths(form: str) -> None:
    if any(len(digits) > 6 or int(digits) > _MOST for digits in _WIDTH.findall(form)):
        raise _too_large()


def check_spec(spec: str) -> None:
    """Refuse a width or a precision in the specification of a format.

    Raises:
        TooMuch: it is larger than 100,000.
    """
    _check_widths(spec)


def _too_large() -> TooMuch:
    return TooMuch(f"the template asks for a width or count above {_MOST:,}, or a number above {_MOST_BITS:,} bits")


def bounded_range(*args: int) -> range:
    """`range`, of at most 100,000 numbers."""
    found = range(*args)
    if len(found) > _MOST:
        raise _too_large()
    charge(4 * len(found))
    return found


# -- methods ---------------------------------------------------------------------------------------------------------


def _joined(own: str, args: Sequence[Any]) -> None:
    if args and isinstance(args[0], list | tuple | dict | set | str | range):
        charge(len(args[0]) * (len(own) + 1) + sum(len(each) for each in args[0] if isinstance(each, str)))


def _replaced(own: str, args: Sequence[Any]) -> None:
    if len(args) > 1 and isinstance(args[0], str) and isinstance(args[1], str) and len(args[1]) > len(args[0]):
        charge(own.count(args[0]) * len(args[1]))


def _padded(own: str, args: Sequence[Any]) -> None:
    if args and isinstance(args[0], int):
        charge(args[0] if args[0] > 0 else 0)


def _tabs(own: str, args: Sequence[Any]) -> None:
    if args and isinstance(args[0], int):
        charge(own.count("\t") * max(args[0], 0))


def _translated(own: str, args: Sequence[Any]) -> None:
    if args and isinstance(args[0], Mapping):
        charge(len(own) * max((len(each) for each in args[0].values() if isinstance(each, str)), default=1))


def _split(own: str, args: Sequence[Any]) -> None:
    # A part of a list takes about 60 bytes, however short its text is.
    separator = next((each for each in args if isinstance(each, str)), "")
    parts = own.count(separator) if separator else sum(map(own.count, " \n\t\r"))
    most = next((each for each in args if type(each) is int and each >= 0), parts)
    charge(_ITEM * (min(parts, most) + 1))


#: Methods of strings that can make much of little: what is paid before they are called with positional arguments.
GROWING: dict[str, Callable[[str, Sequence[Any]], None]] = {
    "join": _joined,
    "replace": _replaced,
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _padded),
    **dict.fromkeys(("split", "rsplit", "splitlines"), _split),
    "expandtabs": _tabs,
    "translate": _translated,
}


def pay_for_call(called: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Count what a method call can make, before it is made; return its positional arguments.

    Raises:
        TooMuch: more than is left, or a method of numbers or bytes that no text needs.
    """
    own, name = getattr(called, "__self__", None), getattr(called, "__name__", "")
    args = tuple(args)
    if isinstance(own, str) and name in GROWING:
        if name == "join" and args and not isinstance(args[0], _SIZED):
            args = (made(list(args[0])), *args[1:])
        GROWING[name](own, (*args, *kwargs.values()))
    elif isinstance(own, bytes | int) and (name in GROWING or name == "to_bytes"):
        raise TooMuch("the template calls a method of bytes or of a number that makes long bytes")
    return args


# -- filters ---------------------------------------------------------------------------------------------------------

#: Filters whose result is no larger than what they are given, or the same object.
_CHEAP = frozenset(
    (
        *("abs", "attr", "count", "d", "default", "first", "float", "int"),
        *("last", "length", "lower", "safe", "trim", "upper"),
    )
)
#: Filters that take numbers of which each makes the result longer.
_LONGER = frozenset(("batch", "center", "indent", "round", "slice", "truncate", "wordwrap"))


def bounded_filters(filters: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """Return filters that count what they go through and what they make."""
    return {name: run if name in _CHEAP else _bounded(name, run) for name, run in filters.items()}


def _bounded(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    at = 0 if getattr(run, "jinja_pass_arg", None) is None else 1

    @wraps(run)
    def counted(*args: Any, **kwargs: Any) -> Any:
        before, value, rest = args[:at], args[at], args[at + 1 :]
        if name in ("join", "sum") and not isinstance(value, _SIZED):
            value = made(list(value))
        if isinstance(value, _SIZED):
            charge((1 if isinstance(value, str) else 8) * len(value))
        _pay_for_filter(name, value, rest, kwargs)
        return made(run(*before, value, *rest, **kwargs))

    return counted


def _pay_for_filter(name: str, value: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    given = (*args, *kwargs.values())
    if name in _LONGER and any(isinstance(each, int) and abs(each) > _MOST for each in given):
        raise _too_large()
    if name == "format":
        modulo(str(value), kwargs or tuple(args))
    elif name == "join":
        _joined(next((each for each in given if isinstance(each, str)), ""), [value])
    elif name == "replace":
        _replaced(str(value), given)
    elif name == "tojson":
        _pay_for_json(value, given)
    elif name == "striptags":
        charge(str(value).count("<") * len(str(value)) // 256)
    elif name == "sum" and any(isinstance(each, list | tuple) for each in given):
        charge(len(value) * expanded(value, METER.most()) // 32)
    elif name in ("indent", "wordwrap"):
        text_of = str(value)
        lines = text_of.count("\n") + 1 if name == "indent" else len(text_of)
        longest = (len(each) if isinstance(each, str) else each if name == "indent" else 0 for each in given)
        charge(lines * max((each for each in longest if isinstance(each, int)), default=4))


def _pay_for_json(value: Any, given: Sequence[Any]) -> None:
    widths = [len(each) if isinstance(each, str) else each for each in given if isinstance(each, str | int)]
    parts = [part for each in given if isinstance(each, list | tuple) for part in each if isinstance(part, str)]
    if any(width > _MOST_INDENT for width in (*widths, *map(len, parts))):
        raise _too_large()
    charge(expanded(value, METER.most(), max((*widths, 0))))
