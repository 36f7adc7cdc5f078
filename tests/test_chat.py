"""Conversations: from a Parquet file on the Hub to batches in which only the assistant's tokens are learned."""

from __future__ import annotations

import io
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from lance_prep.cli.main import cli
from lance_prep.train import LanceDataset
from tests import tokenizers_made as made
from tests.helpers import check_whole
from tests.loopback_hub import LoopbackHub

TRL = Path((find_spec("trl").submodule_search_locations or [""])[0]) / "chat_templates"  # type: ignore[union-attr]
QWEN = made.chat(("<|im_start|>", "<|im_end|>"), ("<think>", "</think>", "<tool_call>", "</tool_call>"))

CONVERSATIONS = [
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": f"What is {i} + {i}?"},
        {"role": "assistant", "content": f"It is {2 * i}, naturally."},
        {"role": "user", "content": "And in words — 请?"},
        {"role": "assistant", "content": "Ask me again. 👋"},
    ]
    for i in range(40)
]


def parquet(**columns: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def model_files(template: str, file: bytes = QWEN, **config: Any) -> dict[str, bytes]:
    side = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    return {
        "tokenizer.json": file,
        "tokenizer_config.json": json.dumps({**side, **config}).encode(),
        "chat_template.jinja": template.encode(),
    }


def run(*args: object) -> str:
    done = CliRunner().invoke(cli, [str(arg) for arg in args], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("layout", ["documents", "blocks"])
def test_only_what_the_assistant_wrote_is_learned(hub: LoopbackHub, tmp_path: Path, layout: str) -> None:
    stock = (TRL / "qwen3.jinja").read_text()
    hub.add_model("owner/model", model_files(stock))
    hub.add_dataset("owner/chat", {"data/train-00000-of-00001.parquet": parquet(messages=CONVERSATIONS)})
    out = tmp_path / "chat.lance"
    told = run(
        *("build", "owner/chat", "--tokenizer", "owner/model", "--messages", "messages", "--no-shuffle"),
        *("--layout", layout, *(("--block-size", 128) if layout == "blocks" else ()), "-o", out),
    )
    assert "learned" in told
    assert "qwen3_training.jinja" in run("info", out)
    check_whole(out)
    assert "rows against the source" in run("verify", out, "--against-source")

    tokenizer = AutoTokenizer.from_pretrained("owner/model")
    training = (TRL / "qwen3_training.jinja").read_text()
    ids, learned = [], []
    for conversation in CONVERSATIONS:
        found = tokenizer.apply_chat_template(
            conversation, chat_template=training, return_dict=True, return_assistant_tokens_mask=True
        )
        ids.append(torch.tensor(found["input_ids"]))
        learned.append(torch.tensor(found["assistant_masks"], dtype=torch.bool))
    expected = [torch.where(mask, each, -100) for each, mask in zip(ids, learned, strict=True)]

    data = LanceDataset(out, labels="assistant")
    if layout == "documents":
        have = [(sample["input_ids"], sample["labels"]) for sample in data]
        assert [one.tolist() for one, _ in have] == [one.tolist() for one in ids]
        assert [labels.tolist() for _, labels in have] == [one.tolist() for one in expected]
        return
    batch = next(iter(DataLoader(data, batch_size=len(data))))
    count = sum(map(len, ids))
    assert batch["input_ids"].reshape(-1)[:count].tolist() == torch.cat(ids).tolist()
    assert batch["labels"].reshape(-1)[:count].tolist() == torch.cat(expected).tolist()
    assert (batch["labels"].reshape(-1)[count:] == -100).all()
