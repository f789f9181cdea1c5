"""TRL's `SFTTrainer` on trajectories.

`trainer.DynamicSFTTrainer` and `config` are what other programs use; `collator` turns a batch of
trajectories into rows, `sources` says what trajectories may come from. Read `trainer.py` first.
"""
