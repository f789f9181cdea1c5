"""The model's tokenizer, as sessions use it, and its chat template, as tasks do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dynatok_online import prompt, tiny
from dynatok_online.prompt import Encoder, Placement
from dynatok_online.tasks.files import Chat
from dynatok_online.tasks.rendering import border_notes
from dynatok_online.tasks.task import Task


class Tokenizer(NamedTuple):
    """Text to token ids, in which names of control tokens are text; and back without them."""

    encode: Encoder
    decode: Callable[[Sequence[int]], str]

    @property
    def control(self) -> dict[int, str]:
        """Control token -> its name."""
        return {number: name for name, number in self.encode.control.items()}


def load_tokenizer(model: str) -> Tokenizer:
    """A model's own.

    Raises OSError or ValueError for a model that has none.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)

    def decode(token_ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(token_ids), skip_special_tokens=True))

    return Tokenizer(Encoder.of(tokenizer), decode)


class BorderNotice:
    """Says of the first task where its prompt is cut unlike the tokenizer would, if anywhere."""

    def __init__(self, encoder: Encoder, placement: Placement, say: Callable[[str], None]) -> None:
        self._encoder = encoder
        self._placement = placement
        self._say = say
        self._said = False

    def __call__(self, task: Task) -> None:
        """A session of this task is about to begin."""
        if not self._said:
            self._said = True
            for note in border_notes(task, self._encoder, self._placement):
                self._say(f"prompt of {task.task_id}: {note}")


def chat_of(
    model: str,
    placement: Placement = "head",
    system: str = "",
    options: Mapping[str, Any] | None = None,
) -> Chat:
    """What turns chat messages into a template. ValueError for a model without a chat template.

    `system` opens conversations without a system message; `options` go to the chat template.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.resolve(model))
    return prompt.chat_of(tokenizer, model, placement, system, options)
