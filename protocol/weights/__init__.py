"""Weights from learner to actors: by shared memory, by a shared folder, or over ZeroMQ.

`base` says what a set of weights is and proves that exactly these bytes arrived; `shm` (with
`ring`, `hash_ahead` and `memory`), `folder` and `zmq` carry it; `transports` chooses. Read
`base.py` first.
"""
