"""The contract between actor and learner: messages, codec, channels, weight manifest."""
