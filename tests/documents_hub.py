"""What the README and the documentation read from the Hub, in its real shapes, with made-up text."""

from __future__ import annotations

import json
import random

import pyarrow as pa
import pyarrow.parquet as pq

from tests import chat_conversations as chats
from tests.loopback_hub import LoopbackHub
from tests.sources import parquet_bytes
from tests.tokenizers_made import byte_level


def seed(hub: LoopbackHub) -> None:
    """Put sources and tokenizers on the Hub."""
    draw = random.Random(7)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 8))) for _ in range(400)]

    def text(count: int) -> str:
        return " ".join(draw.choices(words, k=count))

    gsm8k = {"question": [text(30) for _ in range(800)], "answer": [f"{text(20)} #### {i}" for i in range(800)]}
    card = b"---\nconfigs:\n- config_name: main\n  data_files:\n  - {split: train, path: main/train.parquet}\n---\n"
    hub.add_dataset("openai/gsm8k", {"main/train.parquet": parquet_bytes(gsm8k), "README.md": card})
    turns = [
        [{"role": "user", "content": text(15)}, {"role": "assistant", "content": text(60)}] * draw.randint(1, 3)
        for _ in range(1200)
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"prompt": [text(3) for _ in turns], "messages": turns}), sink, row_group_size=200)
    card = b"---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train_sft, path: data/*.parquet}\n---\n"
    files = {"data/train_sft-00000-of-00001.parquet": sink.getvalue().to_pybytes(), "README.md": card}
    hub.add_dataset("HuggingFaceH4/ultrachat_200k", files)
    alpaca = [{"instruction": text(8), "input": "", "output": text(40)} for _ in range(900)]
    hub.add_dataset("sahil2801/CodeAlpaca-20k", {"code_alpaca_20k.json": json.dumps(alpaca).encode()})
    hub.add_model("openai-community/gpt2", {"tokenizer.json": byte_level()})
    model = chats.model("qwen3")
    config = {**model.config, "chat_template": model.stock, "tokenizer_class": "PreTrainedTokenizerFast"}
    hub.add_model(
        "Qwen/Qwen3-0.6B", {"tokenizer.json": model.file, "tokenizer_config.json": json.dumps(config).encode()}
    )
