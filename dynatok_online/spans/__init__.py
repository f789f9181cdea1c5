"""The one idea: passes to spans, so that KV that was computed once is trained on once.

`build.build_spans` cuts the passes of trajectories into spans and says which see which; `audit`
compares them with what the engine reported; `baselines` lists the known other ways to train as
spans too; `blocks` tells people where each KV block came from; `ghosts` adds what the tokens
after an edit would have been without it. Read `build.py` first.
"""
