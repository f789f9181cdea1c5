"""Train language models while their prompt is being changed: the method, without sockets or engine."""
