"""Where the processes of a run are started: on this machine, as steps of a SLURM job, or by
Ray.

An engine says where a process runs; what runs there is the same everywhere: `dynatok learner` and
`dynatok actor` with their files of the run folder. Read `local.py` first.
"""
