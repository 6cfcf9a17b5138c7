"""What of an answer its prompt writes itself: a think tag of the chat template, or the words to be continued.

A completion begins behind it, so a rule about the whole answer (`format`) must know it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from nonpareil.records import Message, PromptText

_USER, _ANSWER, _THOUGHTS = "nonpareilquestion", "nonpareilanswer", "<think>"


def as_continued(messages: PromptText, opening: str | None) -> PromptText:
    """The prompt whose completion goes on from its last words, as the policy read them: templates may trim these.

    `opening`: its own. Joined to words with a space that was cut, a completion would say what nobody drew.
    """
    if opening is None or isinstance(messages, str) or messages[-1]["role"] != "assistant":
        return messages
    words = messages[-1]["content"]
    if opening.endswith(words) or not opening.endswith(words.strip()):
        return messages
    return [*messages[:-1], {**messages[-1], "content": words.rstrip()}]


class Openings:
    """Openings under one chat template and its arguments."""

    def __init__(self, tokenizer: Any, template_kwargs: Mapping[str, Any]) -> None:
        """`tokenizer`: with a chat template; as `tokenize_prompts` takes both."""
        self._tokenizer, self._kwargs = tokenizer, dict(template_kwargs)
        self._header = self._found_header()

    def of(self, messages: Sequence[Message]) -> str | None:
        """What the rendered prompt has behind the header of the assistant's turn; None where that is not found.

        "" where the answer begins with the completion; what is continued, where the assistant spoke last.
        """
        continues = messages[-1]["role"] == "assistant"
        text = self._rendered(messages, add_generation_prompt=not continues, continue_final_message=continues)
        if text is None or not self._header.strip():
            return None
        _, header, rest = text.rpartition(self._header.strip())
        if not header or (not continues and self._is_earlier_turns(messages)):
            return None
        return rest.removeprefix(self._header[len(self._header.rstrip()) :])

    def _is_earlier_turns(self, messages: Sequence[Message]) -> bool:
        """Whether the last header is an earlier answer's: some templates begin one otherwise than they write it."""
        if all(message["role"] != "assistant" for message in messages):
            return False
        probed = [*messages[:-1], {**messages[-1], "content": _USER}]
        text = self._rendered(probed, add_generation_prompt=True)
        return text is None or _USER in text.rpartition(self._header.strip())[2]

    def _found_header(self) -> str:
        """What the template writes between a question and its answer; "" where that cannot be seen.

        Of an answer that another question follows, and without the empty thoughts that some write there.
        """
        turns = [("user", _USER), ("assistant", _ANSWER), ("user", _USER)]
        text = self._rendered([{"role": role, "content": content} for role, content in turns])
        _, question, rest = (text or "").partition(_USER)
        header, answer, _ = rest.partition(_ANSWER)
        return header.partition(_THOUGHTS)[0] if question and answer else ""

    def _rendered(self, messages: Sequence[Message], **how: Any) -> str | None:
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, **how, **self._kwargs)
        except Exception:  # noqa: BLE001  (a template is a program of others, and raises what it likes)
            return None
        return text if isinstance(text, str) else None
