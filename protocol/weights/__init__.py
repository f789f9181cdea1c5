"""Weights from learner to actors: by shared memory, by a shared folder, over ZeroMQ, or
through an object store.

`base` is the two ends, `payload` how tensors lie in one piece and the proof that exactly these
bytes arrived; `shm` (with `ring`, `hash_ahead` and `memory`), `folder` (with
`safetensors_file`), `zmq` and `store` (with `host_receiver` and `host_file`) carry it;
`transports` chooses. Read `base.py` first.
"""
