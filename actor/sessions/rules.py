"""Edits that the text itself gives rise to: after a sentence, or once the verifier is satisfied.

A watcher reads along and edits the running session, as a person would. An engine streams in
bunches, so an edit may take effect a few tokens after its reason was written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from actor.sessions.live_session import LiveSession
from actor.sessions.serving import Serving
from dynatok_online.adherence.scoring import Decode
from dynatok_online.requirements import requirement
from dynatok_online.requirements.core import SENTENCE
from dynatok_online.tasks.task import EditRule, Task


class RuleWatcher:
    """Applies a task's rules, one after the other, to the session that writes it."""

    def __init__(self, rules: Sequence[EditRule], decode: Decode) -> None:
        self._rules = list(rules)
        self._decode = decode
        self._ids: list[int] = []
        self._since = 0
        self._edited = rules[0].slot
        self._edits: set[asyncio.Task[bool]] = set()
        self.session: LiveSession | None = None

    def read(self, token_ids: Sequence[int]) -> None:
        """See tokens as they come; an edit whose time has come is sent off."""
        self._ids += token_ids
        if not self._rules or self.session is None:
            return
        text = self._decode(self._ids)
        rule = self._rules[0]
        if not self._due(rule, text[self._since :], text[: self._since]):
            return
        self._rules.pop(0)
        self._since, self._edited = len(text), rule.slot
        source = "verifier" if rule.when == "satisfied" else "schedule"
        edit = self.session.edit(rule.slot, rule.state.text, source, rule.state.requirement)
        task = asyncio.ensure_future(edit)
        self._edits.add(task)
        task.add_done_callback(self._edits.discard)

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
    watcher = RuleWatcher(task.rules, decode)
    session = LiveSession(task, serving, decode=decode, on_tokens=watcher.read, **options)
    watcher.session = session
    return session
