"""Pictures of trajectories: what `dynatok inspect` and the demo both draw.

`replay` tells a trajectory as events, `texts` and `verdicts` give it text and colours, `export`
packs it into one page made of `page/`. Read `replay.py` first.
"""
