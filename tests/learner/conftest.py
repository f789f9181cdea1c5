"""A tiny model in a folder, trajectories made by hand, and an actor without an engine.

The fake actor talks through the real channel and the real shared memory. It computes the
log-probabilities of its random tokens with plain transformers, one forward per pass, and shares
no code with spans, plans or our attention.
"""

import asyncio
import os
import socket
import threading

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import msgspec
import numpy as np
import pytest

from dynatok_online.trajectory import RESPONSE, Pass, Trajectory, VersionRun
from protocol.config import ProtocolConfig
from protocol.delivery.actor_channel import ActorChannel
from protocol.run.endpoint import find_endpoint
from protocol.run.trace import Traces
from protocol.weights.base import WeightsError
from protocol.weights.shm import ShmReceiver
from protocol.wire.messages import (
    Bye,
    Finish,
    Hello,
    TrajectoryMessage,
    WeightsApplied,
    WeightsComing,
    WeightsReady,
    WeightsRejected,
)
from tests.edited import edited, task, tiny_model

VOCAB = 40


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """A folder with a random Qwen3 of 30k parameters."""
    model = tiny_model(VOCAB)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


def make_trajectory(name="t", version=0, seed=0, states=2, logprobs=None):
    """Random tokens under `states` prompt states, all sampled by `version`."""
    rng = np.random.default_rng(seed)
    return edited(
        rng,
        name,
        task(rng, states, prompt=8, slot=3, vocab=VOCAB),
        sampled=(3, 12),
        version=version,
        score=1.0,
        logprobs=logprobs or (lambda count: np.full(count, -3.0, np.float32)),
        vocab=VOCAB,
    )


@pytest.fixture
def make():
    return make_trajectory


@pytest.fixture
def endpoint():
    """An address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


class FakeActor:
    """Runs in a thread; `seen` says afterwards what it saw. Options change how it behaves.

    `run_dir`: as an actor of that run it finds a learner there that was started again, and writes
    what it has sent to the run's traces.
    """

    def __init__(self, endpoint, run_id, model_dir, **options):
        self.endpoint, self.run_id, self.model_dir, self.options = (
            endpoint,
            run_id,
            model_dir,
            options,
        )
        self.applied, self.gaps, self.sent, self.finish, self.error = [], [], 0, None, None
        self.version = -1
        import torch
        from transformers import AutoModelForCausalLM

        # Not in the thread: two threads that load models at once disturb each other.
        self.model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        self.stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.join()

    def join(self):
        self._thread.join(70)
        assert not self._thread.is_alive()

    def _run(self):
        try:
            asyncio.run(self._main())
        except Exception as error:
            self.error = error

    async def _main(self):
        options, rng = self.options, np.random.default_rng(self.options.get("seed", 0))
        run_dir = options.get("run_dir")
        traces = None if run_dir is None else Traces(run_dir, "actor-0")
        channel = ActorChannel(
            ProtocolConfig(endpoint=self.endpoint, connect_seconds=60 if run_dir is None else 300),
            self.run_id,
            "actor-0",
            Hello("model", 1, os.getpid()),
            where=None if run_dir is None else lambda: find_endpoint(run_dir, self.endpoint),
        )
        await channel.start()
        listening = asyncio.create_task(self._listen(channel))
        while not self.stop.is_set() and not listening.done():
            await asyncio.sleep(0.002)
            if self.version < 0 or channel.free_credits == 0 or options.get("silent"):
                continue
            if self.sent >= options.get("leave_after", 10**9):
                break
            await channel.acquire()
            made = self._trajectory(rng)
            channel.send(TrajectoryMessage(made))
            if traces is not None:
                traces.write("sent", trace=made.trajectory_id)
            self.sent += 1
        if listening.done():
            listening.result()
            await channel.drain(10)
        channel.send(Bye("finished"))
        listening.cancel()
        await channel.close()

    async def _listen(self, channel):
        receiver = ShmReceiver(self.run_id)
        while True:
            message = await channel.receive()
            if isinstance(message, Finish):
                self.finish = message.version
                return
            if isinstance(message, WeightsComing):
                continue
            assert isinstance(message, WeightsReady)
            manifest = message.manifest
            if self.options.get("refuse"):
                channel.send(WeightsRejected(manifest.version, self.version, "no room"))
                continue
            try:
                tensors = receiver.read(manifest)
            except WeightsError as error:  # of a learner that was killed meanwhile
                channel.send(WeightsRejected(manifest.version, self.version, str(error)))
                continue
            self._apply(manifest, tensors)
            receiver.serves(manifest)
            channel.send(WeightsApplied(manifest.version, 0.0, 0.0, self.gaps[-1], 0))

    def _apply(self, manifest, tensors):
        import torch

        own = dict(self.model.named_parameters())
        assert own.keys() == tensors.keys(), own.keys() ^ tensors.keys()
        with torch.no_grad():
            for name, tensor in tensors.items():
                flat = torch.frombuffer(bytearray(tensor.data), dtype=torch.float32)
                own[name].copy_(flat.view(tensor.shape))
        self.version = manifest.version
        self.applied.append(manifest.version)
        gap = 0.0
        for ids, want in zip(manifest.canary.token_ids, manifest.canary.logprobs, strict=True):
            got = self._logprobs(ids)[np.arange(len(ids) - 1), np.array(ids[1:])]
            gap = max(gap, float(np.abs(got - np.array(want)).mean()))
        self.gaps.append(gap)

    def _logprobs(self, ids):
        import torch

        with torch.no_grad():
            logits = self.model(torch.as_tensor(np.array(ids), dtype=torch.long)[None]).logits[0]
            return logits.log_softmax(-1).numpy()

    def _trajectory(self, rng):
        pieces = [rng.integers(0, VOCAB, 8).astype(np.int32)]
        response: list[int] = []
        logprobs: list[float] = []
        passes: list[Pass] = []
        for state in range(2):
            pieces.append(rng.integers(0, VOCAB, 4).astype(np.int32))
            start, count = len(response), int(rng.integers(2, 8))
            fed = [*pieces[0], *pieces[state + 1], *response]
            new = rng.integers(0, VOCAB, count)
            table = self._logprobs([*fed, *new])
            logprobs += list(table[np.arange(len(fed) - 1, len(fed) + count - 1), new])
            response += [int(token) for token in new]
            passes.append(
                Pass(
                    layout=(0, state + 1, RESPONSE),
                    states={"slot": str(state)},
                    start=start,
                    stop=len(response),
                    num_cached_tokens=0,
                    weight_versions=(VersionRun(self.version, count),),
                    scores={"slot": 1.0},
                )
            )
        if self.options.get("lie"):
            passes[1] = msgspec.structs.replace(passes[1], num_cached_tokens=4)
        return Trajectory(
            trajectory_id=f"{self.options.get('prefix', 't')}{self.sent}",
            pieces=tuple(pieces),
            response=np.array(response, np.int32),
            logprobs=np.array(logprobs, np.float32) + self.options.get("corrupt", np.float32(0)),
            passes=tuple(passes),
        )


@pytest.fixture
def fake_actor():
    """The class; start it with `with fake_actor(...) as actor`."""
    return FakeActor
