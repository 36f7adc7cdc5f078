"""Collection recipes as a user writes them: loading, errors, shares, and what `lance-prep recipes` prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lance_prep.collection import CollectionRecipe, is_collection, load_collection
from lance_prep.errors import RecipeError, UsageError
from lance_prep.plan import make_plan
from tests.collection_sources import SHAPES, add_source, texts
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
      proofs: {source: owner/proofs, max_rows: all}
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
        (("share: 30", "share: -1"), "categories.chat.share: Input should be greater than or equal to 0", ""),
        (("max_rows: 100", "max_rows: 0"), "categories.math.sources.sums.max_rows: ", ""),
        (("block_size: 128", "block_size: 1"), "defaults: block_size: ", ""),
        (("block_size: 128", "blocksize: 1"), "defaults: blocksize: no such field; did you mean block_size?", ""),
        (("block_size: 128", "max_rows: 1"), "defaults: max_rows differs between sources; set it in each source", ""),
        (("proofs:", "TALK:"), "source names must be unique in a collection: talk", ""),
        (("proofs:", "a/b:"), "categories.math.sources.a/b: invalid name 'a/b'", "letters, digits"),
        (("math:", "..:"), "categories...: invalid name '..'", "letters, digits"),
        (("proofs:", "on:"), "categories.math.sources: a name is True, which is not text", "quote"),
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

    assert with_shares(75, 25).notes() == []
    assert with_shares(30, 10).shares() == {"c0": 0.75, "c1": 0.25}
    assert with_shares(30, 10).notes() == [
        "The shares of the categories add up to 40, not 100, and are normalised: c0 75.0%, c1 25.0%."
    ]


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
