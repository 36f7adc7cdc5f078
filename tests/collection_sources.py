"""The 16 sources of the built-in collection `distillation`, tiny and in the shapes that they have on the Hub.

`records(source, rows)` are the records, and `texts(source, rows)` the texts that the built-in recipe makes of them:
written in Python, not with its templates.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.loopback_hub import LoopbackHub

Record = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """A source on the Hub.

    Attributes:
        record: record and text of a number; an empty text where the source has no answer.
        file: of the records; its extension decides the format: Parquet, lines of JSON, or a JSON array.
        schema: of the Parquet file.
        config, split: as the dataset's card names them; without a config, the card says nothing.
    """

    repo: str
    file: str
    record: Callable[[int], tuple[Record, str]]
    schema: pa.Schema | None = None
    config: str | None = None
    split: str = "train"
    gated: bool = False


_STR, _INTS, _STRS = pa.string(), pa.list_(pa.int64()), pa.list_(pa.string())


def _strings(*names: str, **others: pa.DataType) -> pa.Schema:
    return pa.schema([*((name, _STR) for name in names), *others.items()])


def _openhermes(i: int) -> tuple[Record, str]:
    turns = [
        {"from": "system", "value": "You are helpful." if i % 2 else "", "weight": None},
        {"from": "human", "value": f"What is {i} + {i}?", "weight": None},
        {"from": "gpt", "value": f"{i} + {i} = {2 * i}", "weight": None},
    ]
    text = f"User: What is {i} + {i}?\n\nAssistant: {i} + {i} = {2 * i}"
    record = {"custom_instruction": None, "conversations": turns[0 if i % 3 else 1 :], "source": "made", "idx": str(i)}
    return record, "System: You are helpful.\n\n" + text if i % 3 and i % 2 else text


def _ultrachat(i: int) -> tuple[Record, str]:
    said = [f"Tell me about {i}.", f"{i} is a number.", "Is it even?", "Yes." if i % 2 == 0 else "No."]
    turns = [{"content": text, "role": ("user", "assistant")[at % 2]} for at, text in enumerate(said)]
    text = "\n\n".join(f"{('User', 'Assistant')[at % 2]}: {text}" for at, text in enumerate(said))
    return {"prompt": said[0], "prompt_id": f"{i:064x}", "messages": turns}, text


def _openorca(i: int) -> tuple[Record, str]:
    system = "Think step by step." if i % 2 else ""
    record = {"id": f"flan.{i}", "system_prompt": system, "question": f"Name {i}.", "response": f"It is {i}."}
    return record, (f"System: {system}\n\n" if system else "") + f"User: Name {i}.\n\nAssistant: It is {i}."


def _sharegpt(i: int) -> tuple[Record, str]:
    turns = [{"from": "human", "value": f"Write a haiku, number {i}"}, {"from": "gpt", "value": f"Old pond {i}\n"}]
    turns = [] if i % 5 == 4 else turns  # a few conversations have no turns
    text = f"User: Write a haiku, number {i}\n\nAssistant: Old pond {i}\n" if turns else ""
    return {"id": f"c{i}_0", "conversations": turns}, text


def _starcoder(i: int) -> tuple[Record, str]:
    content = f"def f{i}():\n    return {i}\n"
    record = {"max_stars_repo_path": f"f{i}.py", "max_stars_repo_name": "a/b", "max_stars_count": i, "id": str(i)}
    return {**record, "content": content}, content


def _the_stack(i: int) -> tuple[Record, str]:
    content = f"const f{i} = () => {i};\n"
    return {"hexsha": f"{i:040x}", "size": len(content), "ext": "js", "lang": "JavaScript", "content": content}, content


def _codealpaca(i: int) -> tuple[Record, str]:
    given = str(i) if i % 2 else ""
    record = {"output": f"x = {i}", "instruction": "Assign the number.", "input": given}
    asked = f"Assign the number.\n\n{given}" if given else "Assign the number."
    return record, f"User: {asked}\n\nAssistant: x = {i}"


def _apps(i: int) -> tuple[Record, str]:
    solutions = json.dumps([f"print({i})", "pass"]) if i % 4 else ""
    record = {
        "id": i,
        "question": f"Print {i}.\n",
        "solutions": solutions,
        "input_output": "",
        "difficulty": "interview",
    }
    return {**record, "url": "", "starter_code": ""}, f"Print {i}.\n\n\nprint({i})" if solutions else ""


def _numinamath(i: int) -> tuple[Record, str]:
    turns = [{"content": f"Find {i}.", "role": "user"}, {"content": f"${i}$", "role": "assistant"}]
    record = {"source": "olympiads", "problem": f"Find {i}.", "solution": f"${i}$", "messages": turns}
    return record, f"Problem: Find {i}.\n\nSolution: ${i}$"


def _gsm8k(i: int) -> tuple[Record, str]:
    record = {"question": f"Ann has {i} apples. How many?", "answer": f"She has {i}.\n#### {i}"}
    return record, f"Problem: {record['question']}\n\nSolution: {record['answer']}"


def _metamath(i: int) -> tuple[Record, str]:
    record = {"type": "GSM_Rephrased", "query": f"How much is {i}?", "original_question": "?", "response": f"{i}"}
    return record, f"Problem: How much is {i}?\n\nSolution: {i}"


def _mathinstruct(i: int) -> tuple[Record, str]:
    record = {"source": "data/CoT/made.json", "output": f"The answer is {i}", "instruction": f"Compute {i}"}
    return record, f"Problem: Compute {i}\n\nSolution: The answer is {i}"


def _natural_questions(i: int) -> tuple[Record, str]:
    tokens = {"token": ["<P>", str(i)], "is_html": [True, False], "start_byte": [0, 3], "end_byte": [3, 4]}
    found = [f"answer {i}", "another"] if i % 3 == 0 else []
    span = {name: [1] * len(found) for name in ("start_token", "end_token", "start_byte", "end_byte")}
    long = {"start_token": 0, "end_token": 2, "start_byte": 0, "end_byte": 4, "candidate_index": 0}
    yes_no = 1 if i % 3 == 1 else -1
    record = {
        "id": str(i),
        "document": {"title": "T", "url": "u", "html": "<P>" * 1000, "tokens": tokens},
        "question": {"text": f"what is {i}", "tokens": ["what", "is", str(i)]},
        "long_answer_candidates": {
            "start_token": [0], "end_token": [2], "start_byte": [0], "end_byte": [4], "top_level": [True]
        },
        "annotations": {
            "id": [str(i)], "long_answer": [long], "short_answers": [{**span, "text": found}], "yes_no_answer": [yes_no]
        },
    }  # fmt: skip
    answer = found[0] if found else "yes" if yes_no == 1 else ""
    return record, f"Question: what is {i}\n\nAnswer: {answer}" if answer else ""


def _hotpotqa(i: int) -> tuple[Record, str]:
    record = {
        "id": f"{i:x}", "question": f"Which has {i}?", "answer": f"B{i}", "type": "bridge", "level": "easy",
        "supporting_facts": {"title": ["B", "A", "B"], "sent_id": [0, 1, 1]},
        "context": {"title": ["A", "C", "B"], "sentences": [["A1.", f" A{i}."], ["C."], [f"B{i}.", " B2."]]},
    }  # fmt: skip
    return record, f"A: A1. A{i}.\n\nB: B{i}. B2.\n\nQuestion: Which has {i}?\n\nAnswer: B{i}"


def _squad(i: int) -> tuple[Record, str]:
    context = f"The bell weighs {i} kg."
    answers = {"text": [f"{i} kg", f"{i}"], "answer_start": [16, 16]}
    record = {"id": f"{i:024x}", "title": "Bell", "context": context, "question": "How heavy?", "answers": answers}
    return record, f"{context}\n\nQuestion: How heavy?\n\nAnswer: {i} kg"


def _triviaqa(i: int) -> tuple[Record, str]:
    answer = {
        "aliases": [f"n {i}", f"N{i}"], "normalized_aliases": [f"n {i}"], "matched_wiki_entity_name": "",
        "normalized_matched_wiki_entity_name": "", "normalized_value": f"n {i}", "type": "WikipediaEntity",
        "value": f"N {i}",
    }  # fmt: skip
    entity = {"doc_source": [], "filename": [], "title": [], "wiki_context": []}
    record = {"question": f"Who is {i}?", "question_id": f"tc_{i}", "question_source": "", "entity_pages": entity}
    return {**record, "answer": answer}, f"Question: Who is {i}?\n\nAnswer: N {i}"


_TURN = pa.struct([("content", _STR), ("role", _STR)])
_SPAN = [("start_token", _INTS), ("end_token", _INTS), ("start_byte", _INTS), ("end_byte", _INTS)]
_LONG = pa.struct(
    [(name, pa.int64()) for name in ("start_token", "end_token", "start_byte", "end_byte", "candidate_index")]
)
_NATURAL_QUESTIONS = pa.schema(
    {
        "id": _STR,
        "document": pa.struct(
            {
                "title": _STR,
                "url": _STR,
                "html": _STR,
                "tokens": pa.struct(
                    {"token": _STRS, "is_html": pa.list_(pa.bool_()), "start_byte": _INTS, "end_byte": _INTS}
                ),
            }
        ),
        "question": pa.struct({"text": _STR, "tokens": _STRS}),
        "long_answer_candidates": pa.struct([*_SPAN, ("top_level", pa.list_(pa.bool_()))]),
        "annotations": pa.struct(
            {
                "id": _STRS,
                "long_answer": pa.list_(_LONG),
                "short_answers": pa.list_(pa.struct([*_SPAN, ("text", _STRS)])),
                "yes_no_answer": _INTS,
            }
        ),
    }
)
_HOTPOTQA = _strings(
    *("id", "question", "answer", "type", "level"),
    supporting_facts=pa.struct({"title": _STRS, "sent_id": pa.list_(pa.int32())}),
    context=pa.struct({"title": _STRS, "sentences": pa.list_(_STRS)}),
)
_TRIVIA_ANSWER = pa.struct(
    [
        *(("aliases", _STRS), ("normalized_aliases", _STRS), ("matched_wiki_entity_name", _STR)),
        *(("normalized_matched_wiki_entity_name", _STR), ("normalized_value", _STR), ("type", _STR), ("value", _STR)),
    ]
)
_ENTITY = pa.struct(dict.fromkeys(("doc_source", "filename", "title", "wiki_context"), _STRS))

SHAPES = {
    "openhermes": Shape("teknium/OpenHermes-2.5", "openhermes2_5.json", _openhermes),
    "ultrachat": Shape(
        "HuggingFaceH4/ultrachat_200k",
        "data/train_sft-00000-of-00001.parquet",
        _ultrachat,
        _strings("prompt", "prompt_id", messages=pa.list_(_TURN)),
        config="default",
        split="train_sft",
    ),
    "openorca": Shape(
        "Open-Orca/OpenOrca",
        "1M-GPT4-Augmented.parquet",
        _openorca,
        _strings("id", "system_prompt", "question", "response"),
    ),
    "sharegpt": Shape(
        "anon8231489123/ShareGPT_Vicuna_unfiltered", "ShareGPT_V3_unfiltered_cleaned_split.json", _sharegpt
    ),
    "starcoder": Shape(
        "bigcode/starcoderdata",
        "python/train-00000-of-00059.parquet",
        _starcoder,
        pa.schema(
            {
                "max_stars_repo_path": _STR,
                "max_stars_repo_name": _STR,
                "max_stars_count": pa.int64(),
                "id": _STR,
                "content": _STR,
            }
        ),
        gated=True,
    ),
    "the_stack": Shape(
        "bigcode/the-stack-dedup",
        "data/javascript/data-00000-of-00499.parquet",
        _the_stack,
        pa.schema({"hexsha": _STR, "size": pa.int64(), "ext": _STR, "lang": _STR, "content": _STR}),
        gated=True,
    ),
    "codealpaca": Shape("sahil2801/CodeAlpaca-20k", "code_alpaca_20k.json", _codealpaca),
    "apps": Shape("codeparrot/apps", "train.jsonl", _apps),
    "numinamath": Shape(
        "AI-MO/NuminaMath-CoT",
        "data/train-00000-of-00005.parquet",
        _numinamath,
        _strings("source", "problem", "solution", messages=pa.list_(_TURN)),
        config="default",
    ),
    "gsm8k": Shape(
        "openai/gsm8k", "main/train-00000-of-00001.parquet", _gsm8k, _strings("question", "answer"), config="main"
    ),
    "metamath": Shape("meta-math/MetaMathQA", "MetaMathQA-395K.json", _metamath),
    "mathinstruct": Shape("TIGER-Lab/MathInstruct", "MathInstruct.json", _mathinstruct),
    "natural_questions": Shape(
        "google-research-datasets/natural_questions",
        "default/train-00000-of-00287.parquet",
        _natural_questions,
        _NATURAL_QUESTIONS,
        config="default",
    ),
    "hotpotqa": Shape(
        "hotpotqa/hotpot_qa", "distractor/train-00000-of-00002.parquet", _hotpotqa, _HOTPOTQA, config="distractor"
    ),
    "squad": Shape(
        "rajpurkar/squad",
        "plain_text/train-00000-of-00001.parquet",
        _squad,
        _strings(
            *("id", "title", "context", "question"),
            answers=pa.struct({"text": _STRS, "answer_start": pa.list_(pa.int32())}),
        ),
        config="plain_text",
    ),
    "triviaqa": Shape(
        "mandarjoshi/trivia_qa",
        "rc.nocontext/train-00000-of-00001.parquet",
        _triviaqa,
        _strings("question", "question_id", "question_source", entity_pages=_ENTITY, answer=_TRIVIA_ANSWER),
        config="rc.nocontext",
    ),
}


def records(source: str, rows: int) -> list[Record]:
    """Return the first records of a source."""
    return [SHAPES[source].record(i)[0] for i in range(rows)]


def texts(source: str, rows: int) -> list[str]:
    """Return the texts of the first records; empty where a record has no answer or no turns."""
    return [SHAPES[source].record(i)[1] for i in range(rows)]


def add_distillation(hub: LoopbackHub, rows: int = 12, *, gated: bool = True) -> dict[str, str]:
    """Put the sources of `distillation` on the Hub. Return the commit of each.

    Args:
        rows: records of each source.
        gated: StarCoder and The Stack need a token, as in reality.
    """
    return {name: add_source(hub, name, rows, gated=gated) for name in SHAPES}


def add_source(hub: LoopbackHub, name: str, rows: int = 12, *, gated: bool = True) -> str:
    """Put one source of `distillation` on the Hub. Return the commit."""
    shape = SHAPES[name]
    files = {shape.file: _file(shape, records(name, rows)), "README.md": _card(shape)}
    return hub.add_dataset(shape.repo, files, gated=shape.gated and gated)


def _file(shape: Shape, found: list[Record]) -> bytes:
    if shape.schema is not None:
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(found, shape.schema), sink, row_group_size=100)
        return sink.getvalue()
    if shape.file.endswith(".jsonl"):
        return "".join(json.dumps(record) + "\n" for record in found).encode()
    return json.dumps(found, indent=2).encode()


def _card(shape: Shape) -> bytes:
    if shape.config is None:
        return b"---\nlanguage:\n- en\n---\n# made for tests\n"
    pattern = shape.file.rpartition("/")[0] + f"/{shape.split}-*"
    configs = f"configs:\n- config_name: {shape.config}\n  data_files:\n  - split: {shape.split}\n    path: {pattern}\n"
    return f"---\n{configs}---\n# made for tests\n".encode()
