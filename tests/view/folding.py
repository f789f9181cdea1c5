"""What a page makes of a session's events."""

from __future__ import annotations

from typing import Any


def folded(log: list[dict[str, Any]], lane: int) -> dict[str, Any]:
    """What a page knows of a lane after these events."""
    tokens: list[int] = []
    passes: list[dict[str, Any]] = []
    for event in log:
        if event.get("lane") != lane:
            continue
        if event["type"] == "pass":
            del passes[event["index"] :]
            passes.append(dict(event))
        elif event["type"] == "tokens":
            assert event["start"] == len(tokens)
            tokens += event["ids"]
        elif event["type"] == "cut":
            assert event["start"] < len(tokens)
            del tokens[event["start"] :]
        elif event["type"] == "void":
            del passes[event["index"] :]
        elif event["type"] in ("blocks", "passend", "verdict"):
            passes[event["index"]] |= {k: v for k, v in event.items() if k not in ("type", "seq")}
    return {"tokens": tokens, "passes": passes}
