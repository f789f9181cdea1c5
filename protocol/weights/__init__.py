"""Weights from learner to actors: shared memory, a folder, or a ZeroMQ stream.

`base` says what a set of weights is and proves that exactly these bytes arrived; `shm`, `folder`
and `zmq` carry it; `transports` chooses. Read `base.py` first.
"""
