"""The actor: samples responses under live prompt edits, records them, and follows the weights."""
