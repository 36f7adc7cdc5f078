"""Tokenizers that the tests make: one a kind, trained or written on the spot."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from lance_prep.tokenizer.made import train_sample_tokenizer

TEXTS = [
    "",
    "hello world",
    "The quick brown fox jumps over the lazy dog. 1234567890",
    "  leading and trailing  ",
    "def f(x):\n\treturn x ** 2  # square",
    "naïve café — “quotes” … ½",
    "中文分词 と 日本語 한국어",
    "👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301\u0301 \u200b\ufeff",
    "nul\x00byte and \x7f control \x1b[0m",
    "a" * 3000,
    "<|endoftext|> inside a text, and <s> and </s>",
    "\u2028line\u2029separators\u0085",
    " \t\r",
]


@cache
def byte_level() -> bytes:
    """Byte-level BPE with `<|endoftext|>`, as GPT-2's."""
    return train_sample_tokenizer()


@cache
def with_template() -> bytes:
    """The same with `<s> ... </s>` around a text, as Llama's puts its BOS."""
    tokenizer = Tokenizer.from_buffer(byte_level())
    tokenizer.add_special_tokens(["<s>", "</s>"])
    ids = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ids)
    return tokenizer.to_str().encode()


@cache
def word_piece() -> bytes:
    """WordPiece with `[CLS] ... [SEP]`, which gigatoken refuses."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=500, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 20, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    return tokenizer.to_str().encode()


@cache
def without_regex() -> bytes:
    """Byte-level BPE that does not split at words: gigatoken 0.10 splits all the same, and so gives other ids."""
    tokenizer = Tokenizer.from_buffer(byte_level())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return tokenizer.to_str().encode()


@cache
def sentence_piece() -> bytes:
    """BPE with byte fallback that writes spaces as U+2581 and puts one before a text, as Llama 2's."""
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=[*special, *names], show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 20, trainer)
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] in special]
    return json.dumps(data).encode()


#: The patterns that cut a text into words, as their tokenizers spell them.
PATTERNS = {
    "gpt2": None,  # built into ByteLevel
    "llama3": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    ),
    "o200k": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "qwen2": (  # with NFC
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    ),
}


@cache
def across(pattern: str) -> bytes:
    """Byte-level BPE with one of the patterns, that joins any character to the next: its ids show each cut."""
    names = [name for _, name in sorted(zip(_bytes(), _names(), strict=True))]
    ascii_bytes, leads, trails = range(128), range(0xC2, 0xF5), range(0x80, 0xC0)
    pairs = [
        *((a, b) for a in ascii_bytes for b in (*leads, *ascii_bytes)),
        *((a, b) for a in trails for b in (*ascii_bytes, *leads)),
    ]
    merges = [(names[a], names[b]) for a, b in pairs]
    vocab = {token: i for i, token in enumerate([*names, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=PATTERNS[pattern] is None)
    if (regex := PATTERNS[pattern]) is None:
        tokenizer.pre_tokenizer = byte_level
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(regex), behavior="isolated"), byte_level]
        )
    if pattern == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer.to_str().encode()


def _bytes() -> list[int]:
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return shown + [byte for byte in range(256) if byte not in shown]


def _names() -> list[str]:
    return [chr(byte) if i < 188 else chr(256 + i - 188) for i, byte in enumerate(_bytes())]


def reference_ids(
    file: bytes, texts: list[str], *, add_special_tokens: bool = True, parse: bool = False
) -> list[list[int]]:
    """What `tokenizers` says, one text after the other."""
    tokenizer = Tokenizer.from_buffer(file)
    tokenizer.encode_special_tokens = not parse
    return [tokenizer.encode(text, add_special_tokens=add_special_tokens).ids for text in texts]


def save(folder: Path, file: bytes, **side: object) -> str:
    """A tokenizer's folder on disk, with a `tokenizer_config.json` of `side`; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_bytes(file)
    if side:
        (folder / "tokenizer_config.json").write_text(json.dumps(side))
    return str(folder)


def chat(special: tuple[str, ...], added: tuple[str, ...] = (), base: bytes | None = None) -> bytes:
    """Byte-level BPE with these special tokens, and added ones that are not special, as chat models have."""
    tokenizer = Tokenizer.from_buffer(base or byte_level())
    tokenizer.add_special_tokens(list(special))
    tokenizer.add_tokens(list(added))
    return tokenizer.to_str().encode()
