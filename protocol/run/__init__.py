"""What processes leave in a run folder, what they share a machine by, and how they end.

`run_folder`, `endpoint`, `json_files`, `lines`, `metrics` and `trace` are files; `exporter` shows
numbers to Prometheus, `progress` to people; `threads` and `home` decide what libraries find in the
environment; `grace` ends a process that was told to stop. Read `run_folder.py` first.
"""
