"""The learner: trains on the stream of trajectories, and publishes weights."""
