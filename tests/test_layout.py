"""Layouts against naive loops."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lance_prep.arrow_text import drop_blank, split_lines
from lance_prep.errors import RecipeError, UsageError
from lance_prep.keyed import permutation
from lance_prep.layout.base import RowMaker, row_maker
from lance_prep.layout.packing import BestFitPacker, Blocks, ConcatPacker, best_fit_decreasing
from lance_prep.layouts import LAYOUTS
from lance_prep.ledger import DocumentLengths, LengthRecord, as_plain
from lance_prep.recipe import Recipe, load_recipe
from lance_prep.store.metadata import decode
from lance_prep.tokenizer import TokenLists
from lance_prep.tokenizer.lists import join

Documents = list[list[int]]
documents = st.lists(st.lists(st.integers(1, 999), min_size=1, max_size=40), max_size=30)


def token_lists(docs: Documents) -> TokenLists:
    offsets = np.cumsum([0, *map(len, docs)]).astype(np.int64)
    return TokenLists(offsets, np.array([token for doc in docs for token in doc], np.uint16))


def ids_of(docs: Documents, first: int) -> np.ndarray:
    return np.arange(first, first + len(docs), dtype=np.uint64)


def rows_of(blocks: Blocks) -> list[list[int]]:
    return [row[:n].tolist() for row, n in zip(blocks.ids, blocks.num_tokens, strict=True)]


def pieces_of(blocks: Blocks) -> list[list[tuple[int, int, bool]]]:
    """Of each block the document, length and whether it is cut of each piece."""
    pieces = blocks.pieces
    out: list[list[tuple[int, int, bool]]] = [[] for _ in blocks.ids]
    for block, *piece in zip(*(a.tolist() for a in (pieces.block, pieces.doc, pieces.length, pieces.cut)), strict=True):
        out[block].append(tuple(piece))
    return out


def test_every_layout_is_known_everywhere() -> None:
    assert list(get_args(Recipe.model_fields["layout"].annotation)) == list(LAYOUTS)
    assert all(isinstance(row_maker(name), RowMaker) for name in LAYOUTS)
    assert {name for layout in LAYOUTS.values() for name in layout.unread} <= set(Recipe.model_fields)


#: A value that is not the default of each option that some layout does not read.
OTHER: dict[str, Any] = {
    "block_size": 64,
    "packing": "best-fit",
    "keep_columns": ("n",),
    "text_column": "body",
    "template": "{{ body }}",
    "tokenizer": "somebody/tokenizer",
    "tokenizer_revision": "main",
    "tokenizer_backend": "tokenizers",
    "special_tokens": "parse",
    "add_special_tokens": False,
    "eos_token": "<eos>",
    "seed": 5,
    "shuffle_batch_size": 100,
}


@pytest.mark.parametrize("name", OTHER)
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_option_is_refused_or_has_an_effect(layout: str, shuffle: bool, name: str) -> None:
    """What is refused is left out of the build key; with its default value it is no problem."""
    fields = {"layout": layout, "shuffle": shuffle}
    default = Recipe.model_fields[name].default
    load_recipe("a.parquet", {**fields, name: default})
    refused = name in LAYOUTS[layout].unread or (not shuffle and name in ("seed", "shuffle_batch_size"))
    if not refused:
        assert getattr(load_recipe("a.parquet", {**fields, name: OTHER[name]}), name) == OTHER[name]
        return
    with pytest.raises(UsageError, match=f"^{name} has no effect with (layout='{layout}'|shuffle=False): .") as refusal:
        load_recipe("a.parquet", {**fields, name: OTHER[name]})
    assert refusal.value.advice == f"leave `{name}` out"
    with pytest.raises(ValueError, match="has no effect"):
        Recipe(source="a.parquet", **{**fields, name: OTHER[name]})


def test_best_fit_packs_batches_of_source_rows() -> None:
    fields = {"packing": "best-fit", "shuffle": False, "shuffle_batch_size": 100}
    assert load_recipe("a.parquet", fields).shuffle_batch_size == 100


def test_an_override_drops_what_it_leaves_without_effect(tmp_path: Path) -> None:
    assert load_recipe("wikitext", {"layout": "raw"}).text_column is None
    assert load_recipe("sample", {"layout": "raw"}).as_json() == Recipe(source="pydoc:topics", layout="raw").as_json()
    assert load_recipe("sample", {"layout": "blocks", "block_size": 64}).block_size == 64
    path = tmp_path / "r.yaml"
    path.write_text("source: a.parquet\nblock_size: 64\nseed: 7\nkeep_columns: [n]\nlayout: documents\n")
    with pytest.raises(RecipeError, match=r"r.yaml: block_size has no effect with layout='documents'"):
        load_recipe(path)
    path.write_text("source: a.parquet\nseed: 7\nkeep_columns: [n]\nlayout: documents\n")
    assert load_recipe(path, {"shuffle": False}).seed == 1337
    with pytest.raises(RecipeError, match="keep_columns has no effect with layout='blocks'"):
        load_recipe(path, {"layout": "blocks"})
    with pytest.raises(UsageError, match="seed has no effect"):
        load_recipe(path, {"shuffle": False, "seed": 7})


@settings(deadline=None)
@given(st.lists(documents, max_size=5), st.integers(2, 17))
def test_concat_is_the_stream_cut(batches: list[Documents], size: int) -> None:
    packer = ConcatPacker(size, 0, np.dtype(np.uint16))
    got, pieces, seen = [], [], 0
    for docs in batches:
        blocks = packer.pack(token_lists(docs), ids_of(docs, seen))
        seen += len(docs)
        assert (blocks.num_tokens == size).all()
        got += rows_of(blocks)
        pieces += pieces_of(blocks)
    last = packer.flush()
    got += rows_of(last)
    pieces += pieces_of(last)

    everything = [doc for docs in batches for doc in docs]
    stream = [token for doc in everything for token in doc]
    owner = [i for i, doc in enumerate(everything) for _ in doc]
    assert got == [stream[i : i + size] for i in range(0, len(stream), size)]
    blocks_of = [owner[i : i + size] for i in range(0, len(owner), size)]
    want = [
        [(doc, of.count(doc), of.count(doc) < len(everything[doc])) for doc in dict.fromkeys(of)] for of in blocks_of
    ]
    assert pieces == want


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), max_size=30), st.integers(2, 17))
def test_best_fit_keeps_documents_whole(lengths: list[int], size: int) -> None:
    # Each token stands once, so that a piece is known by what it holds.
    ends = np.cumsum([0, *lengths]).tolist()
    docs = [list(range(start, stop)) for start, stop in pairwise(ends)]
    packer = BestFitPacker(size, 0, np.dtype(np.uint16))
    blocks = packer.pack(token_lists(docs), ids_of(docs, 0))
    assert (blocks.num_tokens <= size).all()
    assert (blocks.num_tokens > 0).all()
    # Every piece of a document stands somewhere, whole, and nothing else does.
    pieces = sorted(tuple(doc[i : i + size]) for doc in docs for i in range(0, len(doc), size))
    found = []
    for row, of in zip(rows_of(blocks), pieces_of(blocks), strict=True):
        at = 0
        for doc, length, cut in of:
            options = [docs[doc][i : i + size] for i in range(0, len(docs[doc]), size)]
            assert row[at : at + length] in options
            assert cut == (len(docs[doc]) > size)
            found.append(tuple(row[at : at + length]))
            at += length
        assert at == len(row)
    assert sorted(found) == pieces


@given(st.lists(st.integers(1, 20), max_size=60), st.integers(20, 40))
def test_best_fit_decreasing_against_a_naive_one(lengths: list[int], size: int) -> None:
    free: list[int] = []
    for length in sorted(lengths, reverse=True):
        room = min((f for f in free if f >= length), default=None)
        if room is None:
            free.append(size - length)
        else:
            free[free.index(room)] -= length
    block_of, n = best_fit_decreasing(np.array(lengths, np.int64), size)
    used = np.bincount(block_of, weights=lengths, minlength=n) if lengths else np.zeros(0)
    assert sorted(size - used) == sorted(free)


TEXT_PIECES = st.sampled_from(["a", "\n", " ", "\t", "é", "\u00a0", "\u3000", "word", "\r", "\x00"])


@given(st.lists(st.lists(TEXT_PIECES, max_size=8).map("".join), max_size=12), st.integers(0, 3))
def test_lines_and_blanks_as_python_says(texts: list[str], skip: int) -> None:
    array = pa.array(["skipped"] * skip + texts, pa.large_string()).slice(skip)
    lines, parents = split_lines(array)
    want = [(line, i) for i, text in enumerate(texts) for line in text.split("\n")]
    assert list(zip(lines.to_pylist(), parents.tolist(), strict=True)) == want
    kept, indices = drop_blank(lines)
    assert kept.to_pylist() == [line for line, _ in want if line.strip()]
    assert indices.tolist() == [i for i, (line, _) in enumerate(want) if line.strip()]


@given(st.integers(0, 3000), st.integers(0, (1 << 64) - 1))
def test_a_permutation_is_one(n: int, seed: int) -> None:
    order = permutation(n, seed)
    assert sorted(order.tolist()) == list(range(n))
    assert (order == permutation(n, seed)).all()


def test_permutations_stay_as_they_are() -> None:
    """Datasets that were built have to be built again the same: these values may never change."""
    assert permutation(8, 1337).tolist() == [3, 5, 7, 4, 6, 1, 0, 2]
    assert permutation(5, (1 << 64) - 1).tolist() == [3, 4, 0, 1, 2]


@given(documents, st.lists(st.integers(0, 9), max_size=3), st.lists(st.integers(0, 9), max_size=3))
def test_wrapping_and_taking_keep_the_ids(docs: Documents, prefix: list[int], suffix: list[int]) -> None:
    tokens = token_lists(docs).wrapped(tuple(prefix), tuple(suffix))
    want = [prefix + doc + suffix for doc in docs]
    assert tokens.as_arrow().to_pylist() == want
    order = permutation(len(docs), 3)
    assert tokens.take(order).as_arrow().to_pylist() == [want[i] for i in order]


def masked(docs: Documents) -> TokenLists:
    """The documents with a bit that is known from each token: whether its id is odd."""
    tokens = token_lists(docs)
    return TokenLists(tokens.offsets, tokens.ids, tokens.ids % 2 == 1)


@given(documents, documents, st.data())
def test_a_bit_stays_with_its_token(docs: Documents, others: Documents, data: Any) -> None:
    tokens, plain = masked(docs), token_lists(docs)
    start, stop = sorted(data.draw(st.tuples(st.integers(0, len(docs)), st.integers(0, len(docs)))))
    order = np.array(data.draw(st.permutations(range(len(docs)))), np.int64)
    rows = np.array(sorted(data.draw(st.sets(st.sampled_from(range(len(docs)))))) if docs else [], np.int64)
    by = [others[i % len(others)] if others else [7] for i in range(len(rows))]
    for made, unmasked in (
        (tokens.slice(start, stop), plain.slice(start, stop)),
        (tokens.take(order), plain.take(order)),
        (tokens.replaced(rows, masked(by)), plain.replaced(rows, token_lists(by))),
        (
            join([tokens, masked(others), masked([])], np.dtype(np.uint16)),
            join([plain, token_lists(others)], np.uint16),
        ),
    ):
        assert made.mask is not None
        assert made.mask.tolist() == (made.ids % 2 == 1).tolist()
        assert unmasked.mask is None
        assert made.ids.tolist() == unmasked.ids.tolist()
        assert made.offsets.tolist() == unmasked.offsets.tolist()
        assert made.equals(unmasked) is False
    wrapped = tokens.wrapped((1, 3), (5,))
    assert wrapped.ids.tolist() == plain.wrapped((1, 3), (5,)).ids.tolist()
    assert wrapped.mask is not None
    assert wrapped.mask.tolist() == [bit for doc in docs for bit in (False, False, *(i % 2 == 1 for i in doc), False)]


@settings(deadline=None)
@given(st.lists(documents, max_size=4), st.integers(2, 17), st.sampled_from([ConcatPacker, BestFitPacker]))
def test_a_bit_stays_with_its_token_in_blocks(batches: list[Documents], size: int, kind: Any) -> None:
    packer, plain = kind(size, 1, np.dtype(np.uint16)), kind(size, 1, np.dtype(np.uint16))
    for docs in batches:
        check_masks(packer.pack(masked(docs), ids_of(docs, 0)), plain.pack(token_lists(docs), ids_of(docs, 0)))
    check_masks(packer.flush(), plain.flush())


def check_masks(blocks: Blocks, plain: Blocks) -> None:
    assert plain.mask is None
    assert blocks.ids.tolist() == plain.ids.tolist()
    assert blocks.num_tokens.tolist() == plain.num_tokens.tolist()
    if not len(blocks.ids):
        return
    assert blocks.mask is not None
    is_token = np.arange(blocks.ids.shape[1]) < blocks.num_tokens[:, None]
    assert blocks.mask.tolist() == ((blocks.ids % 2 == 1) & is_token).tolist()


def test_a_mask_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="a mask of 1 bits for 2 tokens"):
        TokenLists(np.array([0, 2]), np.zeros(2, np.uint16), np.ones(1, bool))


def test_too_many_tokens_for_a_list_array() -> None:
    with pytest.raises(OverflowError, match="more than a list array can hold"):
        TokenLists(np.array([0, 1 << 31]), np.empty(0, np.uint16)).as_arrow()


@given(st.lists(st.integers(0, 1 << 40), min_size=1), st.floats(0, 1), st.data())
def test_quantiles_of_lengths_are_exact_below_256_and_close_above(values: list[int], share: float, data: Any) -> None:
    cut = data.draw(st.integers(0, len(values)))
    total = DocumentLengths()
    for start, stop in ((0, cut), (cut, len(values))):  # two shards
        part = DocumentLengths()
        part.add(np.array(values[start:stop], np.int64), np.arange(start, stop, dtype=np.uint64))
        total.merge(decode(LengthRecord, json.loads(json.dumps(as_plain(part.record())))))
    expected = int(np.quantile(values, share, method="inverted_cdf"))
    found = total.quantile(share)
    assert abs(found - expected) <= (0 if expected < 256 else expected / 128)
    assert total.longest == max(values)
    assert total.longest_doc_id == (values.index(max(values)) if max(values) else 0)
