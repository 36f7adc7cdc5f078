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
from lance_prep.text.chat import Message, conversations, tools_of
from lance_prep.tokenizer import ChatTemplate

#: Around control tokens in a message. transformers uses the same two, and removes them from messages.
CONTROL, END_CONTROL = "\U000f0000", "\U000f0001"
_RESERVED = re.compile(f"[{LEARN}{END_LEARN}]")
#: Every template writes messages with these roles, or refuses them.
_USUAL = frozenset(("system", "user", "assistant", "tool"))
_PROBE = "lance prep probe"
#: Probed roles are remembered, so their number is bounded. Data may name any number of roles.
_MOST_ROLES = 256


class ChatRenderer:
    """Writes a record's conversation as one text with marks. Without a conversation, the text is empty.

    Raises:
        NoText: the conversation is invalid, or the template refuses it or would leave a part of it out.
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
        self._probed: dict[tuple[str, str], bool] = {}

    def __call__(self, record: Mapping[str, Any]) -> str:
        messages = self._messages(record)
        if not messages:
            return ""
        tools = tools_of(record)
        for message in messages:
            if type(message.get("content")) is not str or message["role"] not in _USUAL:
                self._check(message)
        METER.start(record)
        METER.saw(8 * len(messages))
        for message in messages:
            for name, value in message.items():
                if (marked := self._marked(value)) is not value:
                    message[name] = marked
        try:
            return self._rendered(messages, self._marked(tools))
        except TooMuch as error:
            raise NoText(str(error)) from error
        except Exception as error:  # a template is others' code: whatever it raises is about this conversation
            raise NoText(f"the chat template refuses it: {self._said(error)}") from error

    def _check(self, message: Message) -> None:
        """Refuse a message that the template would leave out. Join its texts if the template reads only one.

        Many templates write nothing for content that is not text, or for roles that they do not know.
        """
        role, content = message["role"], message.get("content")
        if role not in _USUAL and not self._writes(role, _PROBE):
            raise NoText("the chat template leaves out a message because of its role")
        if content is None or isinstance(content, str):
            return
        if not isinstance(content, list | dict):
            raise NoText("the content of a message is neither text nor a list of parts")
        if self._writes(role, {"text": _PROBE} if isinstance(content, dict) else [{"type": "text", "text": _PROBE}]):
            return
        texts: list[Any] = [part.get("text") if isinstance(part, dict) else part for part in content]
        if isinstance(content, dict) or not all(isinstance(text, str) for text in texts):
            raise NoText("the chat template writes only text, and a message has other content")
        message["content"] = "\n".join(texts)  # as vLLM does

    def _writes(self, role: str, content: Any) -> bool:
        """Return whether the template writes a message with such content. If it refuses the message, return True."""
        key = (role, type(content).__name__)
        if key not in self._probed:
            if len(self._probed) >= _MOST_ROLES:
                raise NoText(f"there are more than {_MOST_ROLES} roles and kinds of content")
            before = [] if role in ("system", "user") else [{"role": "user", "content": "Hi"}]
            METER.start(None)
            try:
                text = self._rendered([*before, {"role": role, "content": content}], None)
            except Exception:  # it is asked again with the conversation, and its reason is counted
                text = _PROBE
            # A template that prints a list as Python does writes its braces.
            self._probed[key] = _PROBE in text and not (isinstance(content, list | dict) and "{'t" in text)
        return self._probed[key]

    def _rendered(self, messages: list[Message], tools: Any) -> str:
        return self._render(
            messages=messages, tools=tools, documents=None, add_generation_prompt=False, **self._variables
        )

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
    """Return the function that writes the recipe's conversations, or None if its source holds texts."""
    return ChatRenderer(template, recipe) if template is not None and recipe.messages is not None else None
