"""What of an answer its prompt writes itself: a think tag of the chat template, or the words to be continued.

A completion begins behind it, so a rule about the whole answer (`format`) must know it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from nonpareil.records import Message

_USER, _ANSWER, _THOUGHTS = "nonpareilquestion", "nonpareilanswer", "<think>"


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
        if not header:
            return None
        return rest.removeprefix(self._header[len(self._header.rstrip()) :])

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
