"""The only code that knows vLLM, in the actor's process and in vLLM's own.

`engine.VllmEngine` implements `actor.sessions.generation`; `plugin` is what vLLM loads (sticky
reuse, people before collecting sessions, taking new weights, quick CPU kernels); `kv_events` reads
its cache events. Read `engine.py` first.
"""
