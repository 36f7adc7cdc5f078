"""Templates that would loop without end or fill the memory: a counted row, or an error while the build is planned."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import lance_prep
from lance_prep.cli.main import cli
from lance_prep.errors import LancePrepError
from lance_prep.plan import NoText, compile_template
from lance_prep.train import LanceDataset
from tests import tokenizers_made as made

#: Templates, each of which would take hours or gigabytes for a row.
BOMBS = [
    "{{ 'x' * 9999999999 }}",
    "{{ text * 9999999999 }}",
    "{{ [text] * 9999999999 }}",
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{% for i in range(100000) if range(100000) | sum and false %}{% endfor %}",
    "{{ 'x' | center(10**9) }}",
    "{{ 'x'.center(10**9) }}",
    "{{ (text | safe).center(10**9) }}",
    "{{ ('a ' * 8000000).split() | length }}",
    "{{ (text * 16000000).split('a') | length }}",
    "{{ ('\\n' * 16000000).splitlines() | length }}",
    "{{ '%9999999999d' % 1 }}",
    "{{ '%*d' % (999999999, 1) }}",
    "{{ '%.999999999f' | format(1.5) }}",
    "{{ '{:{}}'.format(1, 999999999) }}",
    "{{ '{a:>99999999}'.format_map({'a': 1}) }}",
    "{{ ('%(a)s' * 100000) % {'a': 'x' * 100000} }}",
    "{{ ('{0}' * 100000).format('x' * 100000) }}",
    "{{ 9**99999999 }}",
    "{{ 5 | round(-(10**9)) }}",
    "{{ (1).to_bytes(10**9, 'big') }}",
    "{{ 'x'.encode().center(10**9) }}",
    "{{ ('x' * 100000) | replace('x', 'y' * 100000) }}",
    "{{ ('x' * 100000).replace('x', 'y' * 100000) }}",
    "{{ ('y' * 100000).join('x' * 100000) }}",
    "{{ ('x' * 100000) | join('y' * 100000) }}",
    "{{ ('\n' * 100000) | indent('x' * 100000) }}",
    "{{ ('\t' * 100000).expandtabs(100000) }}",
    "{{ ('x' * 100000).translate({120: 'y' * 100000}) }}",
    "{{ [1] | tojson(indent=10**9) }}",
    "{{ [1] | batch(10**9, 'x') | list }}",
    "{{ [1] | slice(10**9) | list }}",
    "{{ ('a ' * 100000) | wordwrap(1, wrapstring='z' * 100000) }}",
    "{{ range(100000) | map('center', 100000) | list | length }}",
    "{{ ('<' * 1000000) | striptags }}",
    "{{ ([[1] * 1000] * 9000) | sum(start=[]) | length }}",
    "{% filter center(10**9) %}x{% endfilter %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
    "{% macro f(x, n) %}{% if n %}{{ f(x + x, n - 1) }}{% endif %}{% endmacro %}{{ f('xx', 90) }}",
    "{% macro f(x, n) %}{% if n %}{{ f(x ~ x, n - 1) }}{% endif %}{% endmacro %}{{ f('xx', 90) }}",
    "{% macro f(x, n) %}{% if n %}{{ f([x, x], n - 1) }}{% endif %}{% endmacro %}{{ f('xx', 90) }}",
    "{% for i in range(100000) %}{{ 'x' * 1000 }}{% endfor %}",
]
#: They need something that only chat templates have.
CHAT_BOMBS = [
    "{% set n = namespace(x='xx') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x='xx') %}{% for i in range(99) %}{% set n.x = dict(a=n.x, b=n.x) %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x='xx') %}{% for i in range(99) %}{% set n.x %}{{ n.x * 9 }}{% endset %}{% endfor %}",
    "{{ dict.fromkeys(range(100000), text * 100000) | string }}",
]


@pytest.fixture(autouse=True)
def _bounded_memory() -> Iterator[None]:
    """Let what is not bounded fail at once, and not when the machine's memory is full."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (1 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_row_has_limits(bomb: str) -> None:
    begun = time.thread_time()
    with pytest.raises(NoText, match=r"loops too long, or makes|asks for a width or count|makes long bytes"):
        compile_template(bomb)({"text": "a"})
    assert time.thread_time() - begun < 10


TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]
MARKED = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"


def chat(folder: Path, template: str, records: list[Any], **options: Any) -> Any:
    """Build a chat dataset of records with a template."""
    tokenizer = made.save(folder / "model", made.chat(("<|im_start|>", "<|im_end|>"), ()), eos_token="<|im_end|>")
    (folder / "own.jinja").write_text(template)
    (folder / "chat.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return lance_prep.build(
        folder / "chat.jsonl",
        output=folder / "out.lance",
        **{"tokenizer": tokenizer, "messages": "messages", "layout": "documents", "shuffle": False, **options},
        chat_template=str(folder / "own.jinja"),
    )


def test_a_conversation_has_limits(tmp_path: Path) -> None:
    """Each row asks for another bomb, in worker threads; the rest is written."""
    bombs = [bomb.replace("text", "messages[0].content") for bomb in [*BOMBS[::7], *CHAT_BOMBS]]
    asked = "".join(f"{{% if messages[0].bomb == {i} %}}{bomb}{{% endif %}}" for i, bomb in enumerate(bombs))
    records = [{"messages": [{"role": "user", "content": "Hi", "bomb": i}, TALK[1]]} for i in range(len(bombs))]
    report = chat(tmp_path, asked + MARKED, [*records, {"messages": TALK}])
    assert (report.ledger.rows_used, report.ledger.rejected) == (1, len(bombs))
    assert set(report.ledger.reasons) <= {
        "the template loops too long, or makes too much text of one row",
        "the template asks for a width or count above 100,000, or a number above 8,192 bits",
        "the template calls a method of bytes or of a number that makes long bytes",
    }


def test_large_rows_are_written_whole(tmp_path: Path) -> None:
    """Limits grow with the record: 10,000 messages, one message of 1.5 MB, and a text of 8 MB."""
    asked = "{% for m in messages %}{% if m.content.strip().startswith('Hi') %}{{ m.role }}{% endif %}{% endfor %}"
    long = [{"role": "user", "content": "Hi " * 500_000}, TALK[1]]
    report = chat(tmp_path, asked + MARKED, [{"messages": TALK * 5_000}, {"messages": long}])
    assert (report.ledger.rows_used, report.ledger.rejected) == (2, 0)
    assert len(LanceDataset(tmp_path / "out.lance").text(1)) > 1_500_000
    text = "Some words.\n" * 700_000
    assert compile_template("{{ text | trim | replace('Some', 'Many') }}")({"text": text}).count("Many") == 700_000


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% include '/etc/passwd' %}", "line 1 uses {% include %}"),
        ("{{ text }}\n{% extends 'x' %}", "line 2 uses {% extends %}"),
        ("{% import 'x' as x %}", "line 1 uses {% import %}"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nested too deeply"),
        ("{% for i in [1] %}" * 30 + "{% endfor %}" * 30, "nested too deeply"),
        ("{{ text" + " | upper" * 3000 + " }}", "nested too deeply"),
        ("x" * 200_000, "it has 200,0"),
        ("{% for %}", "Expected an expression"),
    ],
)
def test_bad_templates_are_refused_while_the_build_is_planned(tmp_path: Path, template: str, said: str) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n')
    done = CliRunner().invoke(cli, ["build", str(tmp_path / "t.jsonl"), "--template", template, "--dry-run"])
    assert said in str(done.exception)
    with pytest.raises(LancePrepError) as raised:
        chat(tmp_path, MARKED + template, [{"messages": TALK}])
    assert said in str(raised.value)


def test_a_reason_names_what_is_missing(tmp_path: Path) -> None:
    report = chat(
        tmp_path,
        MARKED + "{{ messages[0].who.name }}",
        [{"messages": TALK}] * 2 + [{"messages": [{**TALK[1], "who": {}}]}],
    )
    assert report.ledger.reasons == {"the chat template refuses it: an object has no attribute 'who'": 2}
    rejected = (tmp_path / "out.rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["byte"] for line in rejected] == [0, 92]
    with pytest.raises(NoText, match="the template fails: an object has no attribute 'name'"):
        compile_template("{{ text.name }}")({"text": {}})
    with pytest.raises(NoText, match="SecurityError: access to attribute '__class__' of 'str' object is unsafe"):
        compile_template("{{ text.__class__ }}")({"text": ""})
    with pytest.raises(NoText, match="the template fails: UndefinedError"):  # a name that only the data has
        compile_template("{{ {}[text] }}")({"text": "abc"})
