"""Token ids equal those of `tokenizers`, by every backend, for every kind of tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lance_prep.errors import TokenizerError, UsageError
from lance_prep.recipe import Recipe
from lance_prep.tokenizer import CheckedEncoder, ReferenceEncoder, TokenLists, load_tokenizer, make_encoder
from lance_prep.tokenizer.spec import describe
from tests import tokenizers_made as made


def encode(
    file: bytes, texts: list[str], *, backend: str = "auto", parallel: bool = False, **fields: str
) -> TokenLists:
    recipe = Recipe(source="x", tokenizer_backend=backend, **fields)
    spec = describe("test", file, {})
    encoder = make_encoder(spec, recipe, ReferenceEncoder(spec, recipe), parallel=parallel)
    if backend == "auto":
        assert encoder.name == ("tokenizers" if file == made.word_piece() else "gigatoken")
    return encoder.encode(pa.array(texts, pa.large_string())).wrapped(spec.prefix, spec.suffix)


def as_lists(tokens: TokenLists) -> list[list[int]]:
    return tokens.as_arrow().to_pylist()


@pytest.mark.parametrize("kind", ["byte_level", "with_template", "word_piece"])
@pytest.mark.parametrize("mode", ["text", "parse"])
def test_ids_are_those_of_tokenizers(kind: str, mode: str) -> None:
    file = getattr(made, kind)()
    want = made.reference_ids(file, made.TEXTS, parse=mode == "parse")
    assert as_lists(encode(file, made.TEXTS, special_tokens=mode)) == want
    assert as_lists(encode(file, made.TEXTS, special_tokens=mode, backend="tokenizers")) == want


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=200), max_size=20), st.booleans())
def test_ids_of_any_text(texts: list[str], parallel: bool) -> None:
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    want = made.reference_ids(made.byte_level(), texts)
    assert as_lists(encode(made.byte_level(), texts, parallel=parallel)) == want


def test_a_slice_of_an_array_is_encoded_as_itself() -> None:
    recipe, spec = Recipe(source="x"), describe("test", made.byte_level(), {})
    encoder = make_encoder(spec, recipe, ReferenceEncoder(spec, recipe))
    texts = pa.array(made.TEXTS, pa.large_string())
    assert as_lists(encoder.encode(texts.slice(3, 5))) == made.reference_ids(made.byte_level(), made.TEXTS[3:8])


def test_special_tokens_in_a_text_are_plain_text_unless_asked_for() -> None:
    text = ["a<|endoftext|>b"]
    eos = describe("test", made.byte_level(), {}).eos_id
    assert eos not in as_lists(encode(made.byte_level(), text))[0]
    assert eos in as_lists(encode(made.byte_level(), text, special_tokens="parse"))[0]


def test_the_check_finds_a_backend_that_disagrees() -> None:
    recipe, spec = Recipe(source="x"), describe("test", made.byte_level(), {})
    other = describe("other", made.with_template(), {})

    class Wrong:
        name = "wrong"

        def encode(self, texts: pa.LargeStringArray) -> TokenLists:
            tokens = make_encoder(other, recipe, ReferenceEncoder(other, recipe)).encode(texts)
            tokens.ids[0] += 1
            return tokens

    texts = pa.array(["some text here"] * 100, pa.large_string())
    checked = CheckedEncoder(Wrong(), ReferenceEncoder(spec, recipe), seed=1, shard=0)

    def run() -> None:
        for _ in range(40):
            checked.encode(texts)
        checked.finish()

    with checked, pytest.raises(Exception, match=r"disagree on 'e': \[70\] and \[69\]"):
        run()


def test_the_check_takes_the_first_rows_and_a_draw_of_the_others() -> None:
    recipe, spec = Recipe(source="x"), describe("test", made.byte_level(), {})
    reference = ReferenceEncoder(spec, recipe)
    texts = pa.array([f"row {i}" for i in range(50_000)], pa.large_string())
    with CheckedEncoder(make_encoder(spec, recipe, reference), reference, seed=7, shard=0) as checked:
        checked.encode(texts)
        checked.finish()
        assert 64 + 10 < checked.rows_checked < 64 + 50


def test_what_is_known_of_a_tokenizer(tmp_path: Path) -> None:
    plain = load_tokenizer(Recipe(source="x", tokenizer=made.save(tmp_path / "a", made.byte_level())))
    assert (plain.eos_id, plain.bos_id, plain.prefix, plain.suffix) == (0, None, (), ())
    assert (plain.vocab_size, plain.dtype) == (4096, "uint16")
    side = {"eos_token": {"content": "</s>"}, "bos_token": "<s>", "pad_token": "</s>"}
    spec = load_tokenizer(Recipe(source="x", tokenizer=made.save(tmp_path / "b", made.with_template(), **side)))
    assert (spec.bos_id, spec.eos_id, spec.pad_id) == (4096, 4097, 4097)
    assert (spec.prefix, spec.suffix) == ((4096,), (4097,))
    named = Recipe(source="x", tokenizer=str(tmp_path / "b"), eos_token="<|endoftext|>")
    assert load_tokenizer(named).eos_id == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{}", "is not a tokenizer file"),
        ("tokenizer.json", b"\x00\x01", "is not a tokenizer file"),
        ("other.txt", b"", "no tokenizer.json in"),
    ],
)
def test_a_file_that_is_not_a_tokenizer_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(Recipe(source="x", tokenizer=str(tmp_path)))


def test_a_local_tokenizer_has_no_revision(tmp_path: Path) -> None:
    for name in (made.save(tmp_path, made.byte_level()), "lance-prep:sample"):
        with pytest.raises(UsageError, match="tokenizer_revision 'main' is given"):
            load_tokenizer(Recipe(source="x", tokenizer=name, tokenizer_revision="main"))


def test_an_eos_token_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="has no token '<nope>'"):
        load_tokenizer(Recipe(source="x", tokenizer=made.save(tmp_path, made.byte_level()), eos_token="<nope>"))


def slow(folder: Path, **config: object) -> Path:
    """The byte-level tokenizer as `vocab.json` and `merges.txt`."""
    folder.mkdir()
    model = json.loads(made.byte_level())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"add_prefix_space": True, "tokenizer_class": "GPT2Tokenizer"},
        {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"},
    ],
)
def test_a_slow_tokenizer_gives_the_ids_of_transformers(tmp_path: Path, config: dict[str, object]) -> None:
    transformers = pytest.importorskip("transformers")
    folder = slow(tmp_path / "t", **config)
    theirs = transformers.GPT2Tokenizer.from_pretrained(str(folder))
    spec = load_tokenizer(Recipe(source="x", tokenizer=str(folder)))
    texts = [text for text in made.TEXTS if text and "<" not in text]
    assert as_lists(encode(spec.file, texts, special_tokens="parse")) == [theirs.encode(text) for text in texts]
    assert spec.eos_id == theirs.convert_tokens_to_ids(theirs.eos_token)
    with_special = f"a{theirs.eos_token}b"
    assert as_lists(encode(spec.file, [with_special], special_tokens="parse")) == [theirs.encode(with_special)]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("vocab.json", "{}", "lacks 256 of the 256 bytes|are invalid"),
        ("merges.txt", "#version: 0.2\nnot three words", "are invalid"),
        ("tokenizer_config.json", '{"tokenizer_class": "Qwen2Tokenizer"}', "holds a Qwen2Tokenizer without"),
        ("added_tokens.json", '{"<new>": 9999}', "has id 9999"),
    ],
)
def test_slow_tokenizers_that_would_give_other_ids(tmp_path: Path, file: str, content: str, message: str) -> None:
    folder = slow(tmp_path / "t")
    (folder / file).write_text(content)
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokenizer(Recipe(source="x", tokenizer=str(folder)))
    assert "save_pretrained" in caught.value.advice
