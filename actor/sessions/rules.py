"""Edits that the text itself gives rise to: after a sentence, or once the verifier is satisfied.

A watcher reads along and edits the running session, as a person would. An engine streams in
bunches, so an edit may take effect a few tokens after its reason was written. Each token is decoded
once, with the few before it, and the text is judged when a word has ended: what a long response
costs the event loop that all sessions share grows with its length.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from actor.sessions.live_session import LiveSession
from actor.sessions.serving import Serving
from dynatok_online.adherence.passes import THINK, begins_thinking, thought_end
from dynatok_online.adherence.scoring import Decode
from dynatok_online.requirements import requirement
from dynatok_online.requirements.verdict import SENTENCE
from dynatok_online.tasks.task import EditRule, Task
from dynatok_online.view.texts import TokenTexts

LOOK_BACK = 1000
"""Characters before an edit that a verifier is shown."""

MOST_UNREAD = 32
"""Characters without a blank after which a text is judged all the same."""


class RuleWatcher:
    """Applies a task's rules, one after the other, to the session that writes it."""

    def __init__(
        self, rules: Sequence[EditRule], decode: Decode, *, thinking: bool = False
    ) -> None:
        """`thinking`: the prompt has begun a thought, which the response goes on with."""
        self._thinking = thinking
        self._answers = False
        """Whether what the model thinks first has come to its end."""
        self._rules = list(rules)
        self._texts = TokenTexts(decode)
        self._before = ""
        """The text up to the edit before, which rules look back on only to find cut words."""
        self._text = ""
        """The text since then."""
        self._unread = 0
        """Characters of it that came after it was judged last."""
        self._edited = rules[0].slot
        self._edits: set[asyncio.Task[bool]] = set()
        self._failed: BaseException | None = None
        """What an edit failed with; whoever hands over the next tokens hears of it."""
        self.session: LiveSession | None = None

    def read(self, token_ids: Sequence[int]) -> None:
        """See tokens as they come; an edit whose time has come is sent off."""
        if self._failed is not None:
            raise self._failed
        if not self._rules or self.session is None:
            return
        new = "".join(self._texts.extend(token_ids))
        edge = self._text[-1:] + new
        self._text += new
        self._unread += len(new)
        if not (any(map(str.isspace, edge)) or self._unread > MOST_UNREAD):
            return
        self._unread = 0
        if not self._answers:
            thought = thought_end(self._text, self._thinking)
            if thought >= len(self._text) or THINK[0].startswith(self._text.strip()):
                return
            self._text, self._answers = self._text[thought:], True
        rule = self._rules[0]
        if not self._due(rule, self._text, self._before):
            return
        self._rules.pop(0)
        self._before, self._text = (self._before + self._text)[-LOOK_BACK:], ""
        self._edited = rule.slot
        source = "verifier" if rule.when == "satisfied" else "schedule"
        edit = self.session.edit(rule.slot, rule.state.text, source, rule.state.requirement)
        task = asyncio.ensure_future(edit)
        self._edits.add(task)
        task.add_done_callback(self._edited_or_failed)

    def _edited_or_failed(self, task: asyncio.Task[bool]) -> None:
        self._edits.discard(task)
        if not task.cancelled():
            self._failed = task.exception()

    def _due(self, rule: EditRule, text: str, before: str) -> bool:
        if rule.when == "after_sentences":
            # The last one may not have ended yet.
            return len(SENTENCE.findall(text)) > rule.count
        assert self.session is not None
        name = self.session.states[self._edited].requirement
        if name is None:
            return False
        units = requirement(name).verify(text, before=before).units[:-1]
        latest = units[-rule.count :]
        return len(latest) == rule.count and all(unit.ok for unit in latest)


def open_session(task: Task, serving: Serving, *, decode: Decode, **options: Any) -> LiveSession:
    """A live session of the task, with a watcher where it has rules; see `LiveSession`."""
    if not task.rules:
        return LiveSession(task, serving, decode=decode, **options)
    watcher = RuleWatcher(task.rules, decode, thinking=begins_thinking(task.prompt))
    session = LiveSession(task, serving, decode=decode, on_tokens=watcher.read, **options)
    watcher.session = session
    return session
