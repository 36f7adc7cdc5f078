"""Hostile names, folders, options, filters, templates and recipes."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

from tests.hostile.case import Case, Theme, build

_ROW = '{"text": "a row"}\n'


def _link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        before = Path.cwd()
        os.chdir(path.parent)  # an address has at most 107 bytes
        try:
            made.bind(path.name)
        finally:
            os.chdir(before)


def _many(number: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        folder.mkdir()
        for i in range(number):
            (folder / f"{i:05}.jsonl").write_text(_ROW)

    return write


def _deep_folders(path: Path) -> None:
    at = path
    for _ in range(60):
        at = at / ("d" * 50)
    at.mkdir(parents=True)
    (at / "x.jsonl").write_text(_ROW)


PLACES = Theme(
    "Folders, links and names",
    "Nothing blocks and no file is read twice. What is left out is named.",
    (
        Case("a FIFO as the source", build("x.jsonl"), "FIFO", {"x.jsonl": os.mkfifo}, quick=True),
        Case("a FIFO in a folder", build("in"), "FIFO|= 1 used", {"in/a.jsonl": os.mkfifo, "in/b.jsonl": _ROW}, code=0),
        Case("a socket as the source", build("x.jsonl"), "socket", {"x.jsonl": _socket}),
        Case("a socket in a folder", build("in"), "= 1 used", {"in/a.jsonl": _socket, "in/b.jsonl": _ROW}, code=0),
        Case("a device as the source", build("/dev/zero"), "unknown file extension"),
        Case("a link to a device", build("x.jsonl"), "device", {"x.jsonl": _link("/dev/zero")}),
        Case("a device that never answers", build("/dev/tty0"), "unknown file extension"),
        Case("a link to itself", build("x.jsonl"), "itself|link|no such", {"x.jsonl": _link("x.jsonl")}),
        Case(
            "a link to itself in a folder",
            build("in"),
            "= 1 used|link",
            {"in/a.jsonl": _link("a.jsonl"), "in/b.jsonl": _ROW},
        ),
        Case("a link that leads nowhere", build("x.jsonl"), "x.jsonl", {"x.jsonl": _link("nowhere")}),
        Case(
            "a folder that links to its parent",
            build("in"),
            "= 1 used",
            {"in/b.jsonl": _ROW, "in/up": _link("..")},
            code=0,
        ),
        Case(
            "a glob through a link to its parent",
            build("in/**/*.jsonl"),
            "= 1 used",
            {"in/b.jsonl": _ROW, "in/up": _link(".")},
            code=0,
        ),
        Case("a folder called x.jsonl", build("x.jsonl"), "no data files", {"x.jsonl/readme.md": "a"}),
        Case("an empty folder", build("in"), "in", {"in": Path.mkdir}),
        Case("a folder of other files", build("in"), "in", {"in/a.exe": b"MZ", "in/b.pdf": b"%PDF"}),
        Case("5,000 files", build("in"), "= 5,000 used", {"in": _many(5000)}, code=0, seconds=90),
        Case("folders 60 deep, in a path of 3,000 bytes", build("in"), "= 1 used", {"in": _deep_folders}, code=0),
        Case("a name with a newline", build("in"), "= 1 used", {"in/a\nb.jsonl": _ROW}, code=0),
        Case("a name with an escape sequence", build("in"), "= 1 used", {"in/a\x1b[2J.jsonl": _ROW}, code=0),
        Case("a bad file whose name has an escape sequence", build("in"), r"\\x1b", {"in/a\x1b[2J.jsonl": "bad"}),
        Case("a name that is not UTF-8", build("in"), "= 1 used", {os.fsdecode(b"in/a\xff.jsonl"): _ROW}, code=0),
        Case(
            "a name that looks like an option",
            build("./--workers.jsonl"),
            "= 1 used",
            {"--workers.jsonl": _ROW},
            code=0,
        ),
        Case("a name with a glob in it", build("in"), "= 1 used", {"in/[a]*?.jsonl": _ROW}, code=0),
        Case("a name that looks like a URL", build("in"), "= 1 used", {"in/http:/x.jsonl": _ROW}, code=0),
        Case("no such file", build("nowhere.jsonl"), "nowhere.jsonl"),
        Case("a URL of a file", build("file:///etc/passwd"), "unknown file extension"),
        Case("a URL of nothing", build("http://127.0.0.1:9/x.jsonl"), "127.0.0.1", seconds=90),
        Case(
            "a URL with a password that fails",
            build("http://me:secret@127.0.0.1:9/x.jsonl"),
            r"http://127\.0\.0\.1:9",
            seconds=90,
        ),
        Case("an unknown scheme", build("gopher://x/y.jsonl"), "gopher", code=2),
        Case("the output is the source", build("s.jsonl", "-o", "s.jsonl"), "is a file"),
        Case("the output is a file", build("s.jsonl", "-o", "t/tokenizer.json"), "tokenizer.json", code=1),
        Case("the output is a folder of others", build("s.jsonl", "-o", "t"), "error: ", code=1),
        Case("the output is the root", build("s.jsonl", "-o", "/"), "error: ", code=1),
        Case("the output is empty", build("s.jsonl", "-o", ""), "error: ", code=2),
        Case(
            "the output is a link that leads nowhere",
            build("s.jsonl"),
            "error: |= 2 used",
            {"x.lance": _link("nowhere")},
        ),
        Case("the output is a FIFO", build("s.jsonl"), "FIFO|x.lance", {"x.lance": os.mkfifo}),
        Case("the output is below /proc", build("s.jsonl", "-o", "/proc/x.lance"), "/proc"),
        Case("the output is below /dev/null", build("s.jsonl", "-o", "/dev/null/x.lance"), "/dev/null", code=2),
    ),
)


def _filter(name: str, sql: str, message: str, code: int = 2, **more: object) -> Case:
    return Case(name, build("s.jsonl", "--filter", sql), message, code=code, **more)  # type: ignore[arg-type]


FILTERS = Theme(
    "Filters",
    "Only comparisons are run. A filter that is too deep or no condition is wrong usage.",
    (
        _filter("10,000 ANDs", " AND ".join(["n = 1"] * 10_000), "nests too many|conditions"),
        _filter("10,000 ORs", " OR ".join(f"n = {i}" for i in range(10_000)), "nests too many|conditions"),
        _filter("5,000 parentheses", "(" * 5000 + "n = 1" + ")" * 5000, "nests too many|not an SQL"),
        _filter("5,000 NOTs", "NOT " * 5000 + "n = 1", "nests too many|not an SQL"),
        _filter("10,000 values in a list", f"n IN ({', '.join(map(str, range(10_000)))})", "= 2 used", 0),
        _filter("a subquery", "n IN (SELECT n FROM x)", "filter", quick=True),
        _filter("a second statement", "n = 1; DROP TABLE x", "filter"),
        _filter("a comment", "n = 1 -- AND n = 2", "= 1 used|filter", 0),
        _filter("a function", "sleep(1000) = 1", "filter"),
        _filter("a function that reads files", "n = read_text('/etc/passwd')", "filter"),
        _filter("a regex", "text ~ '(a+)+$'", "filter"),
        _filter("an unknown column", "nothing = 1", "nothing", 1),
        _filter("text for a number", "n = 'one'", "filter"),
        _filter("a number over 64 bits", "n = 99999999999999999999999", "filter|= 0 used|n "),
        _filter("an open quote", "text = 'a", "filter"),
        _filter("a control character", "text = 'a\x01'", "2 filtered", 0),
        _filter("text of 100,000 bytes", f"text = '{'x' * 100_000}'", "2 filtered", 0),
        _filter("nothing passes", "n = 3", "2 filtered", 0),
        _filter("NULL compared", "n = NULL", "filter|NULL|null"),
        _filter("a star", "*", "filter"),
        _filter("emoji", "😀", "filter|no column|😀", 1),
    ),
)


def _template(name: str, template: str, message: str, code: int = 0, **more: object) -> Case:
    made = "{{ text }} " + template
    return Case(name, build("s.jsonl", "--template", made), message, code=code, **more)  # type: ignore[arg-type]


TEMPLATES = Theme(
    "Templates",
    "A template of a stranger runs in a sandbox. A row for which it fails is rejected.",
    (
        _template("a loop of 10^9 steps", "{% for i in range(999999999) %}x{% endfor %}", "2 rejected"),
        _template("a namespace that doubles a text", "{% set t = namespace(x='ab') %}{{ t.x }}", "does not offer", 1),
        _template(
            "loops in a loop",
            "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
            "2 rejected",
        ),
        _template(
            "a loop whose condition loops",
            "{% for i in range(100000) if range(100000) | sum and false %}{% endfor %}",
            "2 rejected",
        ),
        _template("text repeated 10^10 times", "{{ text * 9999999999 }}", "2 rejected"),
        _template("a list repeated 10^10 times", "{{ [text] * 9999999999 }}", "2 rejected"),
        _template("a filter that pads to 10^9", "{{ text | center(10**9) }}", "2 rejected"),
        _template("a method that pads to 10^9", "{{ text.center(10**9) }}", "2 rejected"),
        _template("a format that pads to 10^10", "{{ '%9999999999d' % 1 }}", "2 rejected"),
        _template("a format that pads as a value says", "{{ '{:{}}'.format(1, 999999999) }}", "2 rejected"),
        _template("a number of 100 million digits", "{{ 9**99999999 }}", "2 rejected"),
        _template("a text of GB by replacement", "{{ ('x' * 99999).replace('x', 'y' * 99999) }}", "2 rejected"),
        _template("a text of GB by joining", "{{ ('y' * 99999).join('x' * 99999) }}", "2 rejected"),
        _template(
            "endless output",
            "{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
            "2 rejected",
            mib=1000,
            quick=True,
        ),
        _template("a macro that calls itself", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "2 rejected"),
        _template(
            "a macro that calls itself twice, 90 deep",
            "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
            "2 rejected",
        ),
        _template(
            "a macro that doubles its argument",
            "{% macro f(x, n) %}{% if n %}{{ f(x ~ x, n - 1) }}{% endif %}{% endmacro %}{{ f('xx', 90) }}",
            "2 rejected",
        ),
        _template("parentheses 5,000 deep", "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "error: ", 2),
        _template("class walking", "{{ ''.__class__.__mro__[1].__subclasses__() }}", "2 rejected", quick=True),
        _template("class walking by attr", "{{ ''|attr('__class__') }}", "2 rejected"),
        _template("globals of a function", "{{ lipsum.__globals__['os'].system('touch pwned') }}", "does not offer", 1),
        _template("an include", "{% include '/etc/passwd' %}", "no other templates", 2),
        _template("an import", "{% import 'os' as os %}", "no other templates", 2),
        _template("random numbers", "{{ range(99)|random }}", "differs between runs", 2),
        _template("an open block", "{% for i in x %}", "not jinja2", 2),
        _template("an unknown column", "{{ nothing }}", "nothing", 1),
        _template("a division by zero", "{{ n / 0 }}", "2 rejected"),
    ),
)

_ALIASES = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))


def _recipe(name: str, text: str | bytes, message: str, **more: object) -> Case:
    return Case(name, ("build", "r.yaml", "-o", "x.lance"), message, {"r.yaml": text}, **more)  # type: ignore[arg-type]


def _collection(name: str, text: str, message: str, **more: object) -> Case:
    return Case(name, ("build", "c.yaml", "-o", "out"), message, {"c.yaml": text}, **more)  # type: ignore[arg-type]


def _categories(sources: str, name: str = "c") -> str:
    return f"name: {name}\ndefaults: {{tokenizer: t}}\ncategories:\n  one:\n    share: 1\n    sources:\n{sources}"


RECIPES = Theme(
    "Recipes and collections from a stranger",
    "A recipe is data. Names cannot leave the output folder, and aliases cannot fill the memory.",
    (
        _recipe("aliases that stand for 2^40 values", f"source: s.jsonl\n{_ALIASES}", "r.yaml", quick=True),
        _recipe("aliases that stand for 2^40 values in a field", f"{_ALIASES}source: *a39\n", "r.yaml"),
        _recipe("an alias of itself", "source: &a [*a]\n", "contains itself"),
        _recipe("nested 100,000 deep", "source: " + "[" * 100_000 + "]" * 100_000, "nested too deep"),
        _recipe("mappings nested 100,000 deep", "source: " + "{a: " * 100_000 + "1" + "}" * 100_000, "nested too deep"),
        _recipe("indented 3,000 deep", "\n".join(" " * i + "a:" for i in range(3000)), "nested too deep"),
        _recipe("a Python object", "source: !!python/object/apply:os.system ['touch pwned']\n", "r.yaml"),
        _recipe("a merge of itself", "a: &a\n  <<: *a\nsource: s.jsonl\n", "r.yaml"),
        _recipe("a field twice", "source: a\nsource: b\n", "given twice"),
        _recipe("an unknown field", "source: s.jsonl\nexec: rm\n", "exec"),
        _recipe("not a mapping", "- a\n- b\n", "not a mapping"),
        _recipe("not UTF-8", b"source: \xff\n", "not UTF-8"),
        _recipe("UTF-16", "source: s.jsonl\n".encode("utf-16"), "not UTF-8"),
        _recipe("NULs", b"source: s\x00.jsonl\n", "r.yaml"),
        _recipe("two documents", "source: a\n---\nsource: b\n", "r.yaml"),
        _recipe("nothing", "", "not a mapping"),
        _recipe("10 MB of one text", "source: " + "x" * 10_000_000, "r.yaml|too long|no such", seconds=60),
        _recipe("a number of 10,000 digits", f"source: s.jsonl\nseed: {'9' * 10_000}\n", "not valid"),
        _recipe("a date in the 13th month", "source: 2020-13-01\n", "not valid"),
        _recipe("NaN for a number", "source: s.jsonl\nval_fraction: .nan\n", "val_fraction"),
        _recipe("a date for a text", "source: 2020-01-01\n", "source"),
        _recipe("a list of 200,000 sources", "source: [" + "a.jsonl, " * 200_000 + "]", "a.jsonl|no such", seconds=60),
        Case("a FIFO", ("build", "r.yaml", "-o", "x.lance"), "r.yaml", {"r.yaml": os.mkfifo}),
        Case("a folder", ("build", "r.yaml", "-o", "x.lance"), "r.yaml", {"r.yaml": Path.mkdir}),
        _collection(
            "a source name that leads out", _categories("      ../../victim/x: {source: s.jsonl}\n"), "invalid name"
        ),
        _collection("an absolute source name", _categories("      /tmp/x: {source: s.jsonl}\n"), "invalid name"),
        _collection("a source name with a newline", _categories('      "a\\nb": {source: s.jsonl}\n'), "invalid name"),
        _collection(
            "a source name that ends in a newline", _categories('      "a\\n": {source: s.jsonl}\n'), "invalid name"
        ),
        _collection("a source called ..", _categories("      ..: {source: s.jsonl}\n"), "invalid name"),
        _collection(
            "a source name of 500 letters", _categories(f"      {'x' * 500}: {{source: s.jsonl}}\n"), "invalid name"
        ),
        _collection("a collection name that leads out", _categories("      a: {source: s.jsonl}\n", "../../x"), "name"),
        _collection(
            "names that differ in case alone",
            _categories("      a: {source: s.jsonl}\n      A: {source: s.jsonl}\n"),
            "unique",
        ),
        _collection("no categories", "name: c\ncategories: {}\n", "categories"),
        _collection(
            "a share of infinity", "name: c\ncategories: {a: {share: .inf, sources: {x: {source: s.jsonl}}}}\n", "share"
        ),
        _collection(
            "a share of NaN", "name: c\ncategories: {a: {share: .nan, sources: {x: {source: s.jsonl}}}}\n", "share"
        ),
        _collection(
            "a negative share", "name: c\ncategories: {a: {share: -1, sources: {x: {source: s.jsonl}}}}\n", "share"
        ),
        _collection(
            "all shares 0", "name: c\ncategories: {a: {share: 0, sources: {x: {source: s.jsonl}}}}\n", "share 0"
        ),
        _collection("a list for the sources", "name: c\ncategories: {a: {share: 1, sources: [x]}}\n", "sources"),
        _collection(
            "a column that is code",
            _categories('      a: {source: s.jsonl, messages: "x}}{{ cycler.__init__ }}"}\n'),
            "column|messages",
        ),
        _collection(
            "a template that walks classes",
            _categories("      a: {source: s.jsonl, template: \"{{ ''.__class__.__mro__ }}\"}\n"),
            "template|failed|rejected",
        ),
        _collection("an output of a source", _categories("      a: {source: s.jsonl, output: /etc/x}\n"), "output"),
        Case(
            "a collection that is downloaded into a file",
            ("download", "c.yaml", "-o", "s.jsonl"),
            "s.jsonl",
            {"c.yaml": _categories("      a: {source: s.jsonl}\n")},
            code=2,
        ),
        Case(
            "a collection whose source is missing",
            ("download", "c.yaml", "-o", "raw"),
            "nowhere",
            {"c.yaml": _categories("      a: {source: ./nowhere.jsonl}\n")},
            code=1,
            on="both",
        ),
    ),
)


def _option(name: str, *more: str, message: str, code: int = 2) -> Case:
    return Case(name, build("s.jsonl", *more), message, code=code)


OPTIONS = Theme(
    "Options",
    "A value out of range is wrong usage: exit code 2, before anything is read.",
    (
        _option("a block of 0 tokens", "--layout", "blocks", "--block-size", "0", message="block"),
        _option("a block of 10^18 tokens", "--layout", "blocks", "--block-size", "9" * 18, message="block"),
        _option("a negative seed", "--seed", "-1", message="seed"),
        _option("a seed of 100 digits", "--seed", "9" * 100, message="seed"),
        _option("0 workers", "--workers", "0", message="workers"),
        _option("no number of workers", "--workers", "many", message="workers"),
        _option("0 rows", "--max-rows", "0", message="max-rows"),
        _option("half a row", "--max-rows", "1.5", message="max-rows"),
        _option("a fraction of 2", "--val-fraction", "2", message="val-fraction"),
        _option("a fraction of NaN", "--val-fraction", "nan", message="val-fraction"),
        _option("a size with no unit known", "--shard-size", "5 parsecs", message="shard-size"),
        _option("a size of 10^30 bytes", "--shard-size", "9" * 30, message="shard-size|= 2 used", code=0),
        _option("a text of at most 0 bytes", "--max-text-bytes", "0", message="max-text-bytes"),
        _option("a delimiter of two letters", "--delimiter", "ab", message="delimiter"),
        _option("an unknown layout", "--layout", "circles", message="layout|circles"),
        _option("an unknown option", "--frobnicate", message="frobnicate"),
        _option("memory of nothing", "--memory", "0", message="memory"),
        _option("a column of the row number", "--keep-columns", "_rowid", message="_rowid", code=1),
        _option("a kept column twice", "--keep-columns", "n,n", message="= 2 used", code=0),
        _option("a kept column that is the ids", "--keep-columns", "input_ids", message="input_ids", code=1),
        _option("a language of emoji", "--language", "😀", message="language|😀"),
        Case("an unknown command", ("frobnicate",), "frobnicate", code=2),
        Case("an argument of 100,000 bytes", ("info", "x" * 100_000), "too long"),
        Case("no command but an option", ("--frobnicate",), "frobnicate", code=2),
    ),
)


def _streams(name: str, streams: dict[int, str], command: tuple[str, ...], message: str = "", code: int = 0) -> Case:
    return Case(name, command, message, dataset=True, code=code, on="both", streams=streams)


_SHOW = ("show", "d.lance", "--limit", "1")
STREAMS = Theme(
    "Closed and full streams",
    "A build goes on without progress. A command that cannot print its result fails.",
    (
        _streams("stderr is closed", {2: ""}, build(), "= 2 used"),
        _streams("stderr is full", {2: "/dev/full"}, build(), "= 2 used"),
        _streams("stderr is closed, and the build fails", {2: ""}, build("nowhere.jsonl"), "^$", 1),
        _streams("stderr is full, and the build fails", {2: "/dev/full"}, build("nowhere.jsonl"), "^$", 1),
        _streams("stdout is closed", {1: ""}, build()),
        _streams("stdout is full", {1: "/dev/full"}, ("info", "d.lance"), "error: ", 1),
        _streams("stdout and stderr are closed", {1: "", 2: ""}, build(), "^$"),
        _streams("all three streams are closed", {0: "", 1: "", 2: ""}, build(), "^$"),
        _streams("stdin is closed", {0: ""}, build(), "= 2 used"),
        _streams("stdin is closed, and read as the source", {0: ""}, build("-"), "error: ", 1),
        _streams("stdout is full for rows", {1: "/dev/full"}, _SHOW, "error: ", 1),
        _streams("stdout is full for help", {1: "/dev/full"}, ("--help",), "error: ", 1),
        _streams("wrong usage with stderr closed", {2: ""}, ("frobnicate",), "^$", 2),
    ),
)

THEMES = {
    "places": PLACES,
    "filters": FILTERS,
    "templates": TEMPLATES,
    "recipes": RECIPES,
    "options": OPTIONS,
    "streams": STREAMS,
}
