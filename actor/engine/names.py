"""Names that the actor's process and the processes that vLLM starts agree on. Imports nothing."""

WEIGHT_BACKEND = "dynatok"
"""Name of our weight-transfer backend in vLLM's `weight_transfer_config`."""
STICKY = "dynatok"
"""Key of our entry in the `extra_args` of vLLM's sampling parameters."""
URGENT = -1
"""vLLM's priority of requests that go before others; theirs is 0."""
BY_ACTOR = "DYNATOK_ACTOR"
"""Set by the actor in its own environment, inherited by the processes that vLLM starts."""
PLUGIN = "actor.engine.plugin:register"
"""Our entry point in vLLM's plugin group."""
PROPOSER = "actor.engine.drafts.SeenTexts"
"""Our guesses of what comes next, as vLLM's `custom_class`."""
