"""Tasks: a prompt with slots, and when what stands in them changes.

`task.Task` is what sessions are opened with; `files` reads tasks that people wrote; `scripted`
gives the trajectory of a known response without an engine, which makes `gold` training data.
Read `task.py` first.
"""
