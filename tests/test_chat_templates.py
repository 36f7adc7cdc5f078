"""Each training template of trl over hostile conversations: ids and learned tokens are those of transformers.

ids are compared with its sanitised call, learned tokens with its own rendering, token by token, and with its
`return_assistant_tokens_mask`. That mask has a bug (huggingface/transformers#47325): a span whose last character has
no token, or whose last token is token 0, runs to the end; one whose first character has none ends the search. It also
leaves out all but the first of several tokens that spell a span's last character. Only there may ours differ.
"""

from __future__ import annotations

import datetime
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers.utils import chat_template_utils

import lance_prep
from tests import chat_conversations as chats
from tests import tokenizers_made as made

#: What lance-prep tells a template that asks for the date.
TODAY = datetime.datetime(2024, 7, 26)


class _Clock(datetime.datetime):
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return TODAY


def learned_of(runs: list[int], count: int) -> list[bool]:
    """Return whether each of `count` tokens is learned, from the lengths of runs as they are stored."""
    bits = [bit for i, length in enumerate(runs) for bit in [i % 2 == 1] * length]
    return bits + [False] * (count - len(bits))


def compare(stem: str, count: int, folder: Path, seed: str) -> tuple[int, int, int]:
    """Compare conversations, and return how many were written, how many masks compared, and how many differ."""
    model, rng = chats.model(stem), random.Random(f"{stem} {seed}")
    drawn = [chats.conversation(rng, stem) for _ in range(count)]
    expected = [chats.expect(model, *each) for each in drawn]
    columns = {"messages": [json.dumps(messages) for messages, _ in drawn], "n": list(range(count))}
    pq.write_table(pa.table({**columns, "tools": [json.dumps(tools) for _, tools in drawn]}), folder / "chat.parquet")
    tokenizer = made.save(folder / "model", model.file, **model.config, chat_template=model.stock)
    rows = lance_prep.stream(
        folder / "chat.parquet",
        tokenizer=tokenizer,
        messages="messages",
        keep_columns=["n"],
        layout="documents",
        shuffle=False,
    ).read_all()
    assert rows["n"].to_pylist() == [n for n, each in enumerate(expected) if each is not None and each.ids]
    compared = differing = 0
    for row in rows.to_pylist():
        want, learned = expected[row["n"]], learned_of(row["loss_mask"], row["num_tokens"])
        assert want is not None
        assert row["input_ids"] == want.ids, drawn[row["n"]]
        assert learned == want.learned, drawn[row["n"]]
        if want.mask is not None:
            compared += 1
            if learned != want.mask:
                assert want.excused, drawn[row["n"]]
                differing += 1
    return len(rows), compared, differing


@pytest.fixture(autouse=True)
def _fixed_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template_utils, "datetime", _Clock)


def test_trl_has_as_many_training_templates_as_it_had() -> None:
    assert len(chats.STEMS) >= 31


@pytest.mark.parametrize("stem", chats.STEMS)
def test_hostile_conversations_are_written_as_transformers_does(stem: str, tmp_path: Path) -> None:
    written, compared, _ = compare(stem, 20, tmp_path, "quick")
    assert written >= 4
    assert compared >= 1


@pytest.mark.torture
@pytest.mark.parametrize("stem", chats.STEMS)
def test_many_hostile_conversations(stem: str, tmp_path: Path) -> None:
    written, compared, differing = compare(stem, 600, tmp_path, "torture")
    assert written >= 200
    assert compared >= 80
    assert differing < compared
