"""Convert conversations from the forms that datasets use to the messages that chat templates read.

`Recipe.messages` names the columns that hold a conversation:

- one column: a list of turns, or its JSON text. A turn has `role` and `content` (OpenAI), or `from` and `value`
  (ShareGPT).
- two columns: a prompt and its completion, each text or a list of turns.
- three columns: an instruction, its input, which may be empty, and the output.

A source's column `tools` lists the tools that a conversation may call.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lance_prep.recipe import TOOLS_COLUMN
from lance_prep.source import NoText

Message = dict[str, Any]

#: The role for each name that ShareGPT datasets give to a speaker.
_SPEAKERS = {
    **dict.fromkeys(("system",), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bard", "bing", "model"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "function_response"), "tool"),
}
_REASONING = ("reasoning_content", "thinking", "reasoning")


def conversations(columns: Sequence[str]) -> Callable[[Mapping[str, Any]], list[Message]]:
    """Return a function that converts a record to its messages. Without a conversation, the list is empty.

    The function raises `NoText` if the conversation of a record is invalid.
    """
    if len(columns) == 1:
        return lambda record: _turns(record[columns[0]])
    if len(columns) == 2:
        prompt, completion = columns
        return lambda record: _pair(record[prompt], record[completion])
    instruction, given, output = columns
    return lambda record: _pair(_joined(record[instruction], record[given]), record[output])


def tools_of(record: Mapping[str, Any]) -> list[Any] | None:
    """Return the tools of a record, or None."""
    tools = record.get(TOOLS_COLUMN)
    tools = _from_json(tools or "null", "tools") if isinstance(tools, str) else _without_nulls(tools)
    return _objects(tools, "tools") if tools else None


def _pair(prompt: Any, completion: Any) -> list[Message]:
    if prompt is None and completion is None:
        return []
    return [*_side(prompt, "user"), *_side(completion, "assistant")]


def _side(value: Any, role: str) -> list[Message]:
    if isinstance(value, list):
        return _turns(value)
    if not isinstance(value, str):
        raise NoText("the prompt or the completion is missing")
    return [{"role": role, "content": value}]


def _joined(instruction: Any, given: Any) -> Any:
    return f"{instruction}\n{given}" if isinstance(instruction, str) and given else instruction


def _turns(value: Any) -> list[Message]:
    if value is None:
        return []
    if isinstance(value, str):
        if not value.strip():
            return []
        return [_message(turn, nulls=True) for turn in _listed(_from_json(value, "conversation"))]
    # In a column of structs, a field that only some messages have is null in the others.
    return [_message(turn, nulls=False) for turn in _listed(value)]


def _listed(value: Any) -> list[Any]:
    if isinstance(value, dict):  # one message
        return [value]
    if not isinstance(value, list):
        raise NoText("the conversation is not a list of messages")
    return value


def _message(turn: Any, *, nulls: bool) -> Message:
    """Return a new message without null fields. Nulls inside its fields are removed too, unless `nulls`."""
    if not isinstance(turn, dict):
        raise NoText("a message of the conversation is not an object")
    message = {
        name: each if nulls or isinstance(each, str) else _without_nulls(each)
        for name, each in turn.items()
        if each is not None
    }
    if "from" in message and "role" not in message:
        message = _from_sharegpt(message)
    if not isinstance(message.get("role"), str):
        raise NoText("a message has no role, or one that is not text")
    if "tool_calls" in message:
        message["tool_calls"] = _calls(message["tool_calls"])
    for name in _REASONING:  # each template uses one of two names
        if (reasoning := message.get(name)) is not None:
            return {"thinking": reasoning, **message, "reasoning_content": reasoning}
    return message


def _from_sharegpt(turn: Message) -> Message:
    speaker = str(turn["from"]).strip().lower()
    value = turn.get("value", "")
    if speaker == "function_call":
        call = _from_json(value, "function call") if isinstance(value, str) else value
        calls = _objects(call if isinstance(call, list) else [call], "function calls")
        return {"role": "assistant", "tool_calls": [{"type": "function", "function": each} for each in calls]}
    role = _SPEAKERS.get(speaker)
    if role is None:
        raise NoText(f"a message has an unknown speaker; known are {', '.join(_SPEAKERS)}, function_call")
    rest = {name: each for name, each in turn.items() if name not in ("from", "value")}
    return {"role": role, "content": value, **rest}


def _calls(calls: Any) -> list[Any]:
    if isinstance(calls, str):
        calls = _from_json(calls or "[]", "tool calls") or []
    return _objects(calls, "tool calls")


def _objects(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise NoText(f"invalid {what}: not a list of objects")
    return value


def _from_json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NoText(f"invalid {what}: text that is not JSON") from error


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: each if isinstance(each, str) else _without_nulls(each)
            for name, each in value.items()
            if each is not None
        }
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    return value
