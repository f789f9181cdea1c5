"""What processes leave in a run folder, and how they end.

`run_folder`, `json_files`, `metrics` and `trace` are files; `exporter` shows numbers to
Prometheus; `grace` ends a process that was told to stop. Read `run_folder.py` first.
"""
