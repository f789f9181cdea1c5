"""Weights from learner to actors: by shared memory, by a shared folder, or over ZeroMQ.

`base` is the two ends, `payload` how tensors lie in one piece and the proof that exactly these
bytes arrived; `shm` (with `ring`, `hash_ahead` and `memory`), `folder` and `zmq` carry it;
`transports` chooses. Read `base.py` first.
"""
