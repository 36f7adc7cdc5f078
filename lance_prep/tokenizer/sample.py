"""The tokenizer of the built-in sample: byte-level BPE trained on the spot, the same on every run."""

from __future__ import annotations

from pydoc_data.topics import topics

VOCAB_SIZE = 4096


def train_sample_tokenizer() -> bytes:
    """Contents of a `tokenizer.json`, trained on the topics that `pydoc` ships (0.5 MB of text, 0.3 s)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken("<|endoftext|>", special=True)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((topics[name] for name in sorted(topics)), trainer)
    return tokenizer.to_str().encode()
