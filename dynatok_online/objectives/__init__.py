"""What a loss token counts.

`weights.token_weights` gives every response token its weight; the divisor is the trainer's. Read
`weights.py`.
"""
