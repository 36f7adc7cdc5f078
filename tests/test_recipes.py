"""Collection recipes as a user writes them: loading, errors, shares, and what `lance-prep recipes` prints."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

import lance_prep.collection
from lance_prep.cli.main import run
from lance_prep.collection import CollectionRecipe, CollectionSource, collection_schema, is_collection, load_collection
from lance_prep.collection.catalog import SCHEMA_FILE
from lance_prep.collection.model import NAME
from lance_prep.errors import RecipeError, UsageError
from lance_prep.plan import make_plan
from lance_prep.recipe import load_recipe
from lance_prep.store import read_manifest
from tests.collection_sources import SHAPES, add_distillation, add_source, texts
from tests.loopback_hub import TOKEN, LoopbackHub
from tests.sources import read_plan

MIXED = """
name: mixed
defaults: {tokenizer: tok.json, block_size: 128}
categories:
  chat:
    share: 30
    sources:
      talk: {source: data/talk.jsonl, text_column: body}
  math:
    share: 10
    sources:
      sums: {source: owner/sums, template: "{{ q }} {{ a }}", max_rows: 100}
      proofs: {source: owner/proofs, max_rows: all, max_tokens: 5000}
"""


def refused(text: str, tmp_path: Path) -> tuple[str, str]:
    """Load a recipe file that is invalid; return the message without the file's name, and the advice."""
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_collection(tmp_path / "c.yaml")
    said = str(caught.value)
    assert said.startswith(str(tmp_path / "c.yaml")), said
    return said.removeprefix(str(tmp_path / "c.yaml")).removeprefix(": "), caught.value.advice


def test_a_recipe_file_is_a_collection_and_its_paths_are_beside_it(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "talk.jsonl").write_text('{"body": "hi"}\n')
    (tmp_path / "tok.json").write_text("{}")
    (tmp_path / "mixed.yaml").write_text(MIXED)
    assert is_collection(tmp_path / "mixed.yaml")
    assert is_collection(str(tmp_path / "mixed.yaml"))
    collection = load_collection(tmp_path / "mixed.yaml")
    assert [(category, name) for category, name, _ in collection.sources()] == [
        ("chat", "talk"),
        ("math", "sums"),
        ("math", "proofs"),
    ]
    recipe = collection.categories["chat"].sources["talk"].recipe(collection.defaults, seed=5)
    assert (recipe.source, recipe.text_column) == (str(tmp_path / "data" / "talk.jsonl"), "body")
    assert (recipe.tokenizer, recipe.block_size, recipe.seed) == (str(tmp_path / "tok.json"), 128, 5)
    sums, proofs = (collection.categories["math"].sources[name].recipe({}) for name in ("sums", "proofs"))
    assert [(recipe.max_source_rows, recipe.max_tokens) for recipe in (sums, proofs)] == [(100, None), (None, 5000)]
    assert load_collection(collection) is collection
    again = load_collection(collection.model_dump())
    assert again == collection
    with pytest.raises(UsageError, match="block_size"):
        collection.categories["chat"].sources["talk"].recipe(collection.defaults, block_size=1)


def test_other_sources_are_not_collections(tmp_path: Path) -> None:
    (tmp_path / "single.yaml").write_text("source: a.jsonl\n")
    (tmp_path / "bad.yaml").write_text("categories: [\n")
    others = [tmp_path / "single.yaml", tmp_path / "bad.yaml", tmp_path / "none.yaml", tmp_path, "wikitext", "a/b", 3]
    assert [other for other in others if is_collection(other)] == []


@pytest.mark.parametrize(
    ("change", "said", "advice"),
    [
        (("name: mixed", "nam: mixed"), "name: required field is missing (and 1 more problem)", "fields: name, desc"),
        (("template:", "templte:"), "categories.math.sources.sums.templte: no such field; did you mean template?", ""),
        (("share: 30", "share: 30%"), "categories.chat.share: Input should be a valid number", ""),
        (("share: 30", "share: .inf"), "categories.chat.share: Input should be a finite number", ""),
        (
            ("{source: owner/proofs, max_rows: all, max_tokens: 5000}", "owner/proofs"),
            "categories.math.sources.proofs: must be a mapping, got 'owner/proofs'",
            "fields: source, config",
        ),
        (
            ("source: owner/sums", "source: 5"),
            "categories.math.sources.sums.source: Input should be a valid string",
            "",
        ),
        (("source: owner/sums", "source: ''"), "categories.math.sources.sums.source: empty; name a recipe", ""),
        (("share: 30", "share: 1e10"), "categories.chat.share: Input should be less than or equal to 1000000000", ""),
        (
            ("max_rows: 100", "share: 1"),
            "categories.math: give each source a share, or none: proofs would have none",
            "",
        ),
        (("share: 30", "share: -1"), "categories.chat.share: Input should be greater than or equal to 0", ""),
        (("max_rows: 100", "max_rows: 0"), "categories.math.sources.sums.max_rows: ", ""),
        (("block_size: 128", "block_size: 1"), "defaults: block_size: ", ""),
        (("block_size: 128", "blocksize: 1"), "defaults: blocksize: no such field; did you mean block_size?", ""),
        (("block_size: 128", "max_rows: 1"), "defaults: max_rows differs between sources; set it in each source", ""),
        (("block_size: 128", "max_source_rows: 1"), "defaults: max_source_rows differs between sources", ""),
        (("proofs:", "TALK:"), "source names must be unique in a collection: talk", ""),
        (("proofs:", "sums.rejected:"), "categories.math.sources.sums.rejected: a name cannot end with .rejected", ""),
        (("  chat:", "  chat.lance:"), "categories.chat.lance: a name cannot end with .lance", ""),
        (("proofs:", "a/b:"), "categories.math.sources.a/b: invalid name 'a/b'", "letters, digits"),
        (("math:", "..:"), "categories...: invalid name '..'", "letters, digits"),
        (("proofs:", "on:"), ", line 13: the name on is not text", "quote it"),
        (("proofs:", "2024:"), ", line 13: the name 2024 is not text", "quote it"),
        (("text_column: body", "text_column: body, messages: m"), "text_column and messages exclude each other", ""),
    ],
)
def test_errors_name_the_field_and_what_to_write(
    tmp_path: Path, change: tuple[str, str], said: str, advice: str
) -> None:
    assert change[0] in MIXED
    what, remedy = refused(MIXED.replace(*change), tmp_path)
    assert said in what
    assert advice in remedy


@pytest.mark.parametrize("sources", ["", "    sources: {}\n", "    sources:\n"])
def test_a_category_without_sources_is_refused(tmp_path: Path, sources: str) -> None:
    what, advice = refused(f"name: n\ncategories:\n  code:\n    share: 1\n{sources}", tmp_path)
    assert what == "categories.code.sources: a category needs at least one source"
    assert advice == "add one: sources: {NAME: {source: owner/name}}"


@pytest.mark.parametrize(
    ("source", "said", "advice"),
    [
        ("distilation", "no such collection", "did you mean distillation?"),
        ("wikitext", "wikitext is a recipe for a single dataset", "lance-prep build wikitext"),
        ("none.yaml", "no such recipe file: none.yaml", "built-in collections: distillation"),
        ({"name": "n", "categories": {}}, "the collection: categories: ", ""),
    ],
)
def test_a_name_that_means_nothing_gets_the_names_that_do(source: Any, said: str, advice: str) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        load_collection(source)
    assert advice in caught.value.advice


def test_shares_are_normalised_and_a_note_says_so() -> None:
    def with_shares(*shares: float) -> CollectionRecipe:
        categories = {f"c{i}": {"share": s, "sources": {f"s{i}": {"source": "a/b"}}} for i, s in enumerate(shares)}
        return load_collection({"name": "n", "categories": categories})

    assert with_shares(75, 25).notes() == with_shares(0.75, 0.25).notes() == []
    assert with_shares(30, 10).shares() == {"c0": 0.75, "c1": 0.25}
    assert with_shares(30, 10).notes() == [
        "The shares of the categories add up to 40, not 100, and are normalised: c0 75.0%, c1 25.0%."
    ]
    sources = {name: {"source": "a/b", "share": share} for name, share in (("a", 3), ("b", 1))}
    one = load_collection({"name": "n", "categories": {"c": {"share": 100, "sources": sources}}})
    assert one.notes() == ["The shares of the sources of c add up to 4, not 100, and are normalised: a 75.0%, b 25.0%."]


@pytest.mark.parametrize("name", SHAPES)
def test_each_source_of_distillation_becomes_the_text_that_it_should(
    hub: LoopbackHub, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    commit = add_source(hub, name)
    collection = load_collection("distillation")
    source = {name: source for _, name, source in collection.sources()}[name]
    plan = make_plan(source.recipe(collection.defaults, layout="documents", shuffle=False))
    assert plan.source.commit == commit
    batches, _, rejected = read_plan(plan)
    assert rejected == []
    read = [text or "" for batch in batches for text in batch.columns.column(0).to_pylist()]
    assert read == texts(name, 12)
    assert source.license
    assert source.gated == SHAPES[name].gated


def said(*turns: tuple[Any, Any], names: tuple[str, str] = ("role", "content")) -> list[dict[str, Any]]:
    return [dict(zip(names, turn, strict=True)) for turn in turns]


ODD = "a turn of the conversation "
#: a conversation, and its text or why the record is rejected
CONVERSATIONS: list[tuple[Any, str]] = [
    (said(("user", "Hi"), ("assistant", "Hello\n")), "User: Hi\n\nAssistant: Hello\n"),
    (said(("system", "Be brief."), ("USER ", "Hi"), ("tool", "42")), "System: Be brief.\n\nUser: Hi\n\nTool: 42"),
    (said(("system", " "), ("user", "Hi")), "User: Hi"),
    ([], ""),
    (None, ""),
    (said(("user", "Hi"), ("assistant", None)), f"! {ODD}has no text"),
    (said(("user", "Hi"), ("assistant", " \n")), f"! {ODD}has no text"),
    (said((None, "Hi")), f"! {ODD}has none of the roles system,"),
    (said(("narrator", "Hi")), f"! {ODD}has none of the roles system,"),
    ([None], f"! {ODD}is not an object with a role and a text"),
]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.json"])
@pytest.mark.parametrize("names", [("role", "content"), ("from", "value")])
def test_conversations_are_written_turn_by_turn_or_rejected_and_counted(
    hub: LoopbackHub, name: str, names: tuple[str, str]
) -> None:
    renamed = [
        [None if turn is None else dict(zip(names, turn.values(), strict=True)) for turn in talk] if talk else talk
        for talk, _ in CONVERSATIONS
    ]
    records = [{"id": str(i), "talk": talk} for i, talk in enumerate(renamed)]
    hub.add_dataset("owner/talks", {name: encoded(records, name)})
    source = CollectionSource(source="owner/talks", messages="talk")
    assert read_texts(source) == [text for _, text in CONVERSATIONS]


def test_conversations_of_mixed_shapes_in_json(hub: LoopbackHub) -> None:
    """Arrow has no type for them, so the column holds JSON text."""
    mixed: list[tuple[Any, str]] = [
        *CONVERSATIONS,
        (said(("human", "Hi"), ("gpt", "Hello"), names=("from", "value")), "User: Hi\n\nAssistant: Hello"),
        (said(("user", [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}])), "User: AB"),
        (said(("user", [{"type": "image", "url": "u"}])), f"! {ODD}holds something other than text"),
        (said(("user", 5)), f"! {ODD}holds something other than text"),
        (json.dumps(said(("user", "Hi"))), "User: Hi"),
        ("User: Hi", "! fromjson is given text that is not JSON"),
        ({"role": "user", "content": "Hi"}, "! the conversation is not a list of turns"),
        (["Hi", "Hello"], f"! {ODD}is not an object with a role and a text"),
    ]
    records = [{"id": i, "talk": talk} for i, (talk, _) in enumerate(mixed)]
    hub.add_dataset("owner/mixed", {"a.json": encoded(records, "a.json")})
    assert read_texts(CollectionSource(source="owner/mixed", messages="talk")) == [text for _, text in mixed]


def encoded(records: list[dict[str, Any]], name: str) -> bytes:
    if name.endswith(".parquet"):
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(records), sink)
        return sink.getvalue()
    return json.dumps(records).encode() if name.endswith(".json") else "\n".join(map(json.dumps, records)).encode()


def read_texts(source: CollectionSource) -> list[str]:
    """Return the text of each record, or `! ` and the beginning of the reason why it is rejected."""
    plan = make_plan(source.recipe({}, layout="documents", shuffle=False))
    batches, _, rejected = read_plan(plan)
    rows = {
        int(row): text or ""
        for batch in batches
        for row, text in zip(batch.rows, batch.columns.column(0).to_pylist(), strict=True)
    }
    reasons = iter(f"! {each.reason}".partition("system,")[0:2] for each in rejected)
    count = len(rows) + len(rejected)
    return [rows[row] if row in rows else "".join(next(reasons)) for row in range(count)]


@pytest.mark.parametrize("column", ["my talk", "a-b", "1st", "not", ""])
def test_a_messages_column_that_a_template_cannot_name_is_refused(column: str) -> None:
    sources = {"s": {"source": "a", "messages": column}}
    with pytest.raises(RecipeError, match=r"sources\.s\.messages: a template cannot name this column"):
        load_collection({"name": "n", "categories": {"c": {"share": 1, "sources": sources}}})


def test_distillation_has_the_shares_of_its_curriculum() -> None:
    collection = load_collection("distillation")
    assert {name: category.share for name, category in collection.categories.items()} == {
        "instruction_chat": 35,
        "code": 25,
        "math_reasoning": 20,
        "factual_qa": 10,
    }
    assert [len(category.sources) for category in collection.categories.values()] == [4, 4, 4, 4]
    assert [name for _, name, _ in collection.sources()] == list(SHAPES)
    (note,) = collection.notes()
    assert note.startswith("The shares of the categories add up to 90, not 100, and are normalised: ")


def test_recipes_lists_what_is_built_in(capsys: Any) -> None:
    assert run(["recipes"]) == 0
    text = capsys.readouterr().out
    assert "distillation\n  kind     collection of 16 sources\n" in text
    assert "gated    starcoder, the_stack: request access on the Hub" in text
    assert run(["recipes", "--json"]) == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert {name: entry["kind"] for name, entry in listed.items()} == {
        "distillation": "collection",
        "sample": "dataset",
        "wikitext": "dataset",
    }
    assert listed["distillation"]["sources"] == len(listed["distillation"]["licenses"]) == 16
    for entry in listed.values():
        assert entry["description"]
        assert all(entry["licenses"].values())
        assert entry["description"] in text


@pytest.mark.parametrize("name", ["distillation", "sample", "wikitext"])
def test_the_recipe_that_is_printed_is_the_built_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["recipes", name]) == 0
    Path("mine.yaml").write_text(capsys.readouterr().out)
    load = load_collection if name == "distillation" else load_recipe
    assert load("mine.yaml") == load(name)
    assert run(["recipes", name, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["yaml"] == Path("mine.yaml").read_text()
    assert type(load(name))(**printed["recipe"]) == load(name)


def test_an_unknown_recipe_is_refused(capsys: Any) -> None:
    assert run(["recipes", "wikitxt"]) == 1
    assert "did you mean wikitext?" in capsys.readouterr().err
    assert run(["recipes", "wikitext", "--schema"]) == 2
    assert "--schema cannot be combined with NAME" in capsys.readouterr().err


def test_the_schema_in_the_package_is_up_to_date(capsys: Any) -> None:
    assert run(["recipes", "--schema"]) == 0
    path = Path(lance_prep.collection.__path__[0]) / SCHEMA_FILE
    assert path.read_text() == capsys.readouterr().out, f"run: lance-prep recipes --schema > {path}"


@pytest.mark.parametrize(
    ("change", "valid"),
    [
        (("", ""), True),
        (("block_size: 128", "shard_size: 1MiB"), True),
        (("max_rows: 100", "max_tokens: all"), True),
        (("template:", "templte:"), False),
        (("share: 30", "share: lots"), False),
        (("max_rows: 100", "max_rows: some"), False),
        (("block_size: 128", "blocksize: 128"), False),
        (("proofs:", "a/b:"), False),
        (("proofs: {source: owner/proofs, max_rows: all, max_tokens: 5000}", ""), True),
        (("sources:\n      talk: {source: data/talk.jsonl, text_column: body}", ""), False),
    ],
)
def test_the_schema_accepts_what_the_loader_accepts(tmp_path: Path, change: tuple[str, str], valid: bool) -> None:
    import jsonschema

    text = MIXED.replace(*change)
    (tmp_path / "c.yaml").write_text(text)
    jsonschema.Draft7Validator.check_schema(collection_schema())
    if valid:
        jsonschema.validate(yaml.safe_load(text), collection_schema())
        assert load_collection(tmp_path / "c.yaml")
    else:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(yaml.safe_load(text), collection_schema())
        with pytest.raises(RecipeError):
            load_collection(tmp_path / "c.yaml")


def categories(shares: dict[str, float]) -> dict[str, Any]:
    return {name: {"share": share, "sources": {f"of.{name}": {"source": "a/b"}}} for name, share in shares.items()}


@given(st.dictionaries(st.from_regex(NAME, fullmatch=True), st.floats(0, 1e9), min_size=1, max_size=20))
def test_shares_sum_to_one_and_keep_their_ratios(given_shares: dict[str, float]) -> None:
    names = {name.lower() for name in given_shares}
    assume(len(names) == len(given_shares) and max(map(len, names)) < 90)
    assume(not any(name.endswith(ENDS) for name in names))
    fields = {"name": "n", "categories": categories(given_shares)}
    if sum(given_shares.values()) == 0:
        with pytest.raises(RecipeError, match="every category has share 0"):
            load_collection(fields)
        return
    collection = load_collection(fields)
    total = sum(Fraction(share) for share in given_shares.values())
    assert list(collection.shares()) == list(given_shares)
    for name, share in collection.shares().items():
        assert share == pytest.approx(float(Fraction(given_shares[name]) / total), rel=1e-12)
    assert sum(collection.shares().values()) == pytest.approx(1, rel=1e-12)
    assert bool(collection.notes()) == (not any(abs(total / whole - 1) < 1e-9 for whole in (1, 100)))


ENDS = (".val", ".plan", ".rejected", ".stats", ".part", ".lance")


@given(
    st.text(max_size=12)
    | st.sampled_from([f"a{end}" for end in ENDS])
    | st.sampled_from(["..", "a/b", "a\\b", ".hidden", "a\n", "a\0", "C:", "-rf", "a" * 101])
)
def test_no_name_leads_out_of_the_folder(name: str) -> None:
    """Names become file names: `DIR/<category>/<source>.jsonl` and `OUT/<source>.lance`."""
    source = {"source": "a/b"}
    for fields in (
        {"name": name, "categories": {"c": {"share": 1, "sources": {"s": source}}}},
        {"name": "n", "categories": {name: {"share": 1, "sources": {"s": source}}}},
        {"name": "n", "categories": {"c": {"share": 1, "sources": {name: source}}}},
    ):
        if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name) and not name.endswith(ENDS):
            load_collection(fields)
        else:
            with pytest.raises(RecipeError, match=r"invalid name|cannot end with"):
                load_collection(fields)


ANCHORED = "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9 if i else ['1'])}]\n" for i in range(9))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MIXED + "name: again\n", ", line 14: name is given twice, first in line 2"),
        (MIXED.replace("  math:", "  chat:"), ", line 9: chat is given twice, first in line 5"),
        (MIXED.replace("max_rows: 100", "source: x"), ", line 12: source is given twice, first in line 12"),
        (ANCHORED, ", line 7: holds over 1,000,000 values"),
        ("x: &x [*x]\n", "an alias contains itself"),
        ("x: &x {y: *x}\n", "an alias contains itself"),
        ("[" * 200_000, "is nested too deep"),
        ("a: " * 50_000, "is not valid YAML"),
        ("a: 1\n--- \nb: 2\n", "is not valid YAML"),
        ("!!python/object/apply:os.system ['true']", "is not valid YAML"),
        ("{[a]: b}", ", line 1: a name is not text"),
        ("1: 2", ", line 1: the name 1 is not text"),
        ("a: \x00", "is not valid YAML"),
        ("- a\n", "is not a mapping of fields"),
        ("", "is not a mapping of fields"),
    ],
)
def test_yaml_that_would_be_misread_is_refused(tmp_path: Path, text: str, said: str) -> None:
    what, _ = refused(text, tmp_path)
    assert said in what
    assert not is_collection(tmp_path / "c.yaml")
    with pytest.raises(RecipeError):
        load_recipe(tmp_path / "c.yaml")


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(MIXED.encode() + b"description: caf\xe9\n")
    with pytest.raises(RecipeError, match="is not UTF-8: invalid continuation byte at byte 364") as caught:
        load_collection(tmp_path / "c.yaml")
    assert caught.value.advice == "save it as UTF-8"


def test_aliases_and_merges_are_allowed(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "name: n\ncategories:\n  c:\n    share: 1\n    sources:\n"
        "      a: &qa {source: owner/a, template: '{{ q }}', max_rows: 5}\n"
        "      b: {<<: *qa, source: owner/b}\n"
    )
    sources = load_collection(tmp_path / "c.yaml").categories["c"].sources
    assert (sources["b"].source, sources["b"].template, sources["b"].max_rows) == ("owner/b", "{{ q }}", 5)


def test_a_collection_of_ten_thousand_sources_loads(tmp_path: Path) -> None:
    lines = [f"      s{i}: {{source: owner/s{i}, template: '{{{{ q }}}}', max_rows: {i + 1}}}" for i in range(10_000)]
    (tmp_path / "c.yaml").write_text("\n".join(["name: n\ncategories:\n  c:\n    share: 1\n    sources:", *lines]))
    collection = load_collection(tmp_path / "c.yaml")
    assert [name for _, name, _ in collection.sources()] == [f"s{i}" for i in range(10_000)]


@pytest.mark.parametrize(
    ("source", "said", "advice"),
    [
        ("distilation", "no such recipe or file: distilation", "did you mean distillation?"),
        ("distillation", "distillation is a collection of several sources", "build_collection"),
        ("{tmp}/c.yaml", "c.yaml is a collection of several sources", "build_collection"),
    ],
)
def test_a_collection_that_is_built_as_one_dataset_says_what_to_call(
    tmp_path: Path, source: str, said: str, advice: str
) -> None:
    (tmp_path / "c.yaml").write_text(MIXED)
    with pytest.raises(RecipeError, match=said) as caught:
        lance_prep.build(source.format(tmp=tmp_path), output=tmp_path / "o.lance")
    assert advice in caught.value.advice
    assert not (tmp_path / "o.lance").exists()


def test_distillation_builds_from_the_hub_into_a_mixture_with_its_shares(
    hub: LoopbackHub, tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lance_prep.train import Mixture

    add_distillation(hub)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    out = tmp_path / "out"
    assert run(["build", "distillation", "-o", str(out), "--tokenizer", tokenizer, "--block-size", "32"]) == 0
    manifest = read_manifest(out)
    assert {name: split.samples for name, split in manifest.splits.items()} == {
        name: len(list(filter(None, texts(name, 12)))) for name in SHAPES
    }
    mixture = Mixture.from_manifest(out)
    tokens: Counter[str] = Counter()
    for name, share in mixture.shares().items():  # of samples, of which the last of each source is padded
        split = manifest.splits[name]
        tokens[str(split.category)] += share * Fraction(split.tokens, split.sequences)
    found = {name: float(share / sum(tokens.values())) for name, share in tokens.items()}
    shares = {"instruction_chat": 35 / 90, "code": 25 / 90, "math_reasoning": 20 / 90, "factual_qa": 10 / 90}
    assert found == pytest.approx(shares, rel=1e-3)
    assert mixture.take([0, 1, 2])["input_ids"].shape == (3, 32)


def test_a_recipe_that_is_stored_holds_no_credentials() -> None:
    sources = {"s": {"source": "https://user:secret@example.org/a.jsonl?token=secret"}}
    collection = load_collection({"name": "n", "categories": {"c": {"share": 1, "sources": sources}}})
    assert "secret" not in collection.model_dump_json() + repr(collection)
    assert collection.categories["c"].sources["s"].source == "https://example.org/a.jsonl"


def test_sources_of_any_format_are_read_as_a_single_build_reads_them(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("q;a\nwhy;so\n")
    (tmp_path / "b.txt").write_text("one\n\ntwo\n")
    sources = {
        "a": {"source": "a.csv", "delimiter": ";", "template": "{{ q }}: {{ a }}"},
        "b": {"source": "b.txt", "text_unit": "paragraph"},
    }
    (tmp_path / "c.yaml").write_text(json.dumps({"name": "n", "categories": {"c": {"share": 1, "sources": sources}}}))
    loaded = load_collection(tmp_path / "c.yaml").categories["c"].sources
    assert [read_texts(loaded[name]) for name in "ab"] == [["why: so"], ["one", "two"]]
    sources["a"]["delimiter"] = ";;"
    what, _ = refused(json.dumps({"name": "n", "categories": {"c": {"share": 1, "sources": sources}}}), tmp_path)
    assert what.startswith("categories.c.sources.a: delimiter: not a delimiter")
