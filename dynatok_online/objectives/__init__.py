"""What a loss token counts.

`token_weights` gives every response token its weight; the divisor is the trainer's. Read
`token_weights.py`.
"""
