"""The README's section "Chat data", literally, against the loopback Hub."""

from __future__ import annotations

import io
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests import chat_conversations as chats
from tests.loopback_hub import LoopbackHub
from tests.test_readme import README, SESSION


def seed(hub: LoopbackHub) -> None:
    """Put the source and the model on the Hub, in their real shapes."""
    draw = random.Random(7)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 8))) for _ in range(400)]

    def turn(role: str, count: int) -> dict[str, str]:
        return {"role": role, "content": " ".join(draw.choices(words, k=count))}

    talks = [[turn("user", 15), turn("assistant", 60)] * draw.randint(1, 3) for _ in range(1200)]
    sink = io.BytesIO()
    prompts = {"prompt": [talk[0]["content"] for talk in talks], "messages": talks}
    pq.write_table(pa.table(prompts), sink, row_group_size=200)
    card = b"---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train_sft, path: data/*.parquet}\n---\n"
    files = {"data/train_sft-00000-of-00001.parquet": sink.getvalue(), "README.md": card}
    hub.add_dataset("HuggingFaceH4/ultrachat_200k", files)
    model = chats.model("qwen3")
    config = {**model.config, "chat_template": model.stock, "tokenizer_class": "PreTrainedTokenizerFast"}
    hub.add_model(
        "Qwen/Qwen3-0.6B", {"tokenizer.json": model.file, "tokenizer_config.json": json.dumps(config).encode()}
    )


def test_the_section_runs_as_printed(hub: LoopbackHub, tmp_path: Path) -> None:
    blocks = re.findall(
        r"<!-- needs the Hub: chat -->\n```(\w*)\n(.*?)\n```", README.read_text(encoding="utf-8"), re.DOTALL
    )
    assert [language for language, _ in blocks] == ["sh", "python"]
    blocks[0] = ("sh", "\n".join(line for line in blocks[0][1].split("\n") if not line.startswith("pip ")))
    seed(hub)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-c", SESSION],
        input=json.dumps(blocks),
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert "⟦<think>" in done.stdout
