"""Which model classes the engine has code for."""

from __future__ import annotations


def served_classes() -> frozenset[str]:
    """Names of classes as configurations write them: vLLM's own, and those that it runs through
    transformers by name."""
    from vllm.model_executor.models.registry import ModelRegistry

    return frozenset(ModelRegistry.get_supported_archs())
