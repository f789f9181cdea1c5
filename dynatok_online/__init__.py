"""The method: training while the prompt is being changed. No sockets, no engine."""
