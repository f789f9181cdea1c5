"""Live sessions: one response, written pass by pass while its prompt changes, and recorded.

`live_session.LiveSession` writes, `editors` and `rules` decide edits, `serving` is the gate to the
engine, `recorder` and `cache_audit` keep what really happened. Read `live_session.py` first.
"""
