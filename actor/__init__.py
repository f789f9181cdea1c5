"""The actor: samples responses under live prompt edits, records them, follows the weights.

`sessions` is what a response under edits is, `engine` the only code that knows vLLM; `online` is
an actor in the loop, `offline` one alone, `demo` the page. Read `sessions/live_session.py` first.
"""
