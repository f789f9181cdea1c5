"""Where a run begins or resumes: its newest checkpoint, and what the journal has beyond it."""

from __future__ import annotations

from pathlib import Path

from learner.config import LearnerConfig
from learner.online.checkpoint import Progress, StreamState, latest
from learner.training import CHECKPOINTS
from protocol.delivery.durable import JournaledStore
from protocol.delivery.received import Received
from protocol.wire.messages import Offsets

_BEGINNING = StreamState(step=0, consumed=Offsets(), tasks={})


class ResumePoint:
    """What a run folder says about the run so far."""

    def __init__(self, run_dir: Path, ranks: int = 1) -> None:
        """`ranks`: processes of this learner. Raises ValueError for a checkpoint of another
        number of them: each holds a part of the optimizer's state."""
        checkpoint = latest(run_dir / CHECKPOINTS)
        if checkpoint is not None and checkpoint.state.ranks != ranks:
            raise ValueError(
                f"learner.ranks is {ranks}, but {checkpoint.path} was written by "
                f"{checkpoint.state.ranks}: resume with --learner.ranks {checkpoint.state.ranks}"
            )
        self.path = None if checkpoint is None else checkpoint.path
        """Folder of the newest checkpoint; None: there is none."""
        self.state = _BEGINNING if checkpoint is None else checkpoint.state
        self.progress = Progress(self.state)

    def replay(self, journal: JournaledStore) -> list[Received]:
        """What is in the journal and the checkpoint has not consumed.

        The journal is told which tasks are done.
        """
        stored = list(journal.replay(self.progress.consumed))
        for actor, tasks in self.state.tasks.items():
            journal.receipts.tasks_of(actor).add_all(tasks)
        return stored


def open_journal(config: LearnerConfig) -> JournaledStore:
    """The journal of what has come from the actors."""
    return JournaledStore(
        Path(config.run_dir) / "journal" / "learner",
        config.run_id,
        max_bytes=config.journal_bytes,
        max_message_bytes=config.protocol.max_message_bytes,
    )
