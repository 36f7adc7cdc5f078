"""A `tokenizer.json` made here: from the two files of a GPT-2 tokenizer, or trained for the built-in sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lance_prep.errors import TokenizerError

VOCAB, MERGES = "vocab.json", "merges.txt"
# Other classes use the same two files with another pattern, a normalizer or affixes of words.
_CLASSES = (None, "GPT2Tokenizer", "GPT2TokenizerFast")
_ROLES = ("bos", "eos", "unk", "pad")
_GPT2_EOS = "<|endoftext|>"
_SAMPLE_VOCABULARY = 4096
_CONVERT = "convert it: transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"


def train_sample_tokenizer() -> bytes:
    """Return a byte-level BPE trained on the topics of `pydoc` (0.5 MB of text, 0.3 s). It is the same on every run."""
    from pydoc_data.topics import topics

    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_SAMPLE_VOCABULARY,
        special_tokens=[AddedToken("<|endoftext|>", special=True)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((topics[name] for name in sorted(topics)), trainer)
    return tokenizer.to_str().encode()


def is_slow(folder: Path) -> bool:
    """Return whether a folder has the two files of a slow tokenizer."""
    return (folder / VOCAB).exists() and (folder / MERGES).exists()


def convert_slow(folder: Path, side: dict[str, Any], added: dict[str, int]) -> bytes:
    """Return the `tokenizer.json` that gives the ids of transformers' GPT2Tokenizer.

    Args:
        side: what `tokenizer_config.json` and `special_tokens_map.json` say.
        added: contents of `added_tokens.json`.

    Raises:
        TokenizerError: the files are invalid, or belong to a tokenizer of another kind.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    kind = side.get("tokenizer_class")
    if kind not in _CLASSES:
        raise TokenizerError(f"{folder} holds a {kind} without a tokenizer.json", _CONVERT)
    try:
        vocab, merges = models.BPE.read_file(str(folder / VOCAB), str(folder / MERGES))
        tokenizer = Tokenizer(models.BPE(vocab, merges))
    except Exception as error:  # tokenizers raises bare Exceptions
        raise TokenizerError(f"{VOCAB} and {MERGES} in {folder} are invalid: {error}", _CONVERT) from error
    missing = [char for char in pre_tokenizers.ByteLevel.alphabet() if char not in vocab]
    if missing:
        said = f"{VOCAB} in {folder} lacks {len(missing)} of the 256 bytes, so it is not byte-level BPE"
        raise TokenizerError(said, _CONVERT)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(side.get("add_prefix_space")))
    tokenizer.decoder = decoders.ByteLevel()
    for content, number, special in _added(side, added, vocab):
        tokenizer.add_tokens([AddedToken(content, special=special, normalized=False)])
        if number not in (None, tokenizer.token_to_id(content)):
            said = f"{folder}: token {content!r} has id {number}, but follows {tokenizer.token_to_id(content)} others"
            raise TokenizerError(said, _CONVERT)
    bos = _content(side.get("bos_token"))
    if side.get("add_bos_token") and bos is not None:
        ids = [(bos, tokenizer.token_to_id(bos))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=ids)
    return tokenizer.to_str().encode()


def _added(side: dict[str, Any], added: dict[str, int], vocab: dict[str, int]) -> list[tuple[str, int | None, bool]]:
    """Return the added tokens by id, those without a known id last: content, id, and whether it is special."""
    named = [content for role in _ROLES if (content := _content(side.get(f"{role}_token"))) is not None]
    named += [str(_content(token)) for token in side.get("additional_special_tokens") or ()]
    if not named and _GPT2_EOS in vocab:
        named = [_GPT2_EOS]
    found: dict[str, tuple[int | None, bool]] = {content: (vocab.get(content), True) for content in named}
    found |= {content: (number, content in named) for content, number in added.items()}
    for number, token in (side.get("added_tokens_decoder") or {}).items():
        found[str(token["content"])] = (int(number), bool(token.get("special")) or token["content"] in named)
    ordered = sorted(found.items(), key=lambda item: (item[1][0] is None, item[1][0] or 0))
    return [(content, number, special) for content, (number, special) in ordered]


def _content(token: Any) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None
