"""`dynatok inspect`: what stored trajectories hold, for people.

`stored` reads them wherever they lie; `terminal` prints passes, blocks and text, `fed` the pieces
that the model was fed, `spans_figure` draws spans. Read `main.py` first.
"""
