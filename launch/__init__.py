"""Starts, watches and stops a run: command line, configuration, local supervisor, doctor."""
