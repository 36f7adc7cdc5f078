"""Write conversations with a chat template, as transformers does, with marks for what encoding has to know.

The result is one text. Marks in it say which text the assistant wrote (`LEARN`, `END_LEARN`), and which control tokens
were written inside a message (`CONTROL`, `END_CONTROL`), so that they are encoded as plain text. See `text.marked`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from lance_prep.loss_mask import END_LEARN, LEARN
from lance_prep.recipe import Recipe
from lance_prep.source import NoText
from lance_prep.template_limits import LONG, METER, TooMuch
from lance_prep.text.chat import conversations, tools_of
from lance_prep.tokenizer import ChatTemplate

#: Around control tokens in a message. transformers uses the same two, and removes them from messages.
CONTROL, END_CONTROL = "\U000f0000", "\U000f0001"
_RESERVED = re.compile(f"[{LEARN}{END_LEARN}]")


class ChatRenderer:
    """Writes a record's conversation as one text with marks; an empty text if it has none.

    Raises:
        NoText: the conversation cannot be read, or the template refuses it.
    """

    def __init__(self, template: ChatTemplate, recipe: Recipe) -> None:
        from lance_prep.bounded_jinja import compile_bounded, reason_of
        from lance_prep.tokenizer import chat_environment

        assert recipe.messages is not None
        self._messages = conversations(recipe.messages)
        self._render = compile_bounded(chat_environment(), template.source)
        self._reason_of = reason_of
        self._variables = template.variables
        self._literals = template.source
        self._unsafe = frozenset(template.unsafe)
        longest_first = sorted(template.control, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        # Most strings hold none of these characters, and `in` is ten times faster than the pattern.
        self._first = tuple({CONTROL, END_CONTROL, LEARN, END_LEARN, *(token[0] for token in template.control)})

    def __call__(self, record: Mapping[str, Any]) -> str:
        messages = self._messages(record)
        if not messages:
            return ""
        tools = tools_of(record)
        METER.start(record)
        METER.saw(8 * len(messages))
        for message in messages:
            for name, value in message.items():
                if (marked := self._marked(value)) is not value:
                    message[name] = marked
        try:
            return self._render(
                messages=messages,
                tools=self._marked(tools),
                documents=None,
                add_generation_prompt=False,
                **self._variables,
            )
        except TooMuch as error:
            raise NoText(str(error)) from error
        except Exception as error:  # a template is others' code: whatever it raises is about this conversation
            raise NoText(f"the chat template refuses it: {self._said(error)}") from error

    def _said(self, error: Exception) -> str:
        """Return what the template says, if all conversations of this kind get the same words."""
        said = str(error)
        if said and said in self._literals:
            return " ".join(said.split())[:120]
        return self._reason_of(error, self._literals)

    def _marked(self, value: Any) -> Any:
        """Return messages or tools with marks around the control tokens in their strings. Keys are not marked."""
        if isinstance(value, str):
            if len(value) > LONG:
                METER.saw(len(value))
            for char in self._first:
                if char in value:
                    return self._mark(value)
            return value
        if isinstance(value, dict):
            return {name: self._marked(each) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return [self._marked(each) for each in value]
        # Other objects have methods, which a template could call: transformers shows their type instead.
        return value if value is None or isinstance(value, bool | int | float) else f"<{type(value).__name__}>"

    def _mark(self, text: str) -> str:
        if _RESERVED.search(text):
            raise NoText("a message contains U+10FFFE or U+10FFFF, which are not characters")
        text = text.replace(CONTROL, "").replace(END_CONTROL, "")
        return self._control.sub(self._wrapped, text)

    def _wrapped(self, match: re.Match[str]) -> str:
        if match[0] in self._unsafe:
            raise NoText("a message contains a control token that the tokenizer makes of plain text too")
        return f"{CONTROL}{match[0]}{END_CONTROL}"


def chat_renderer(template: ChatTemplate | None, recipe: Recipe) -> Callable[[Mapping[str, Any]], str] | None:
    """Return what writes the recipe's conversations, or None if it has none."""
    return ChatRenderer(template, recipe) if template is not None and recipe.messages is not None else None
