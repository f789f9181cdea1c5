"""A small model as files that travel: its GGUF file's 4-bit blocks, in parts of any size.

    python -m benchmarks._model_parts pack MODEL_FOLDER MODEL.gguf OUT [PARTS]
    python -m benchmarks._model_parts join IN MODEL_FOLDER

`join` needs numpy and safetensors only. What it makes is, byte for byte, the model that was packed:
a hash says so.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

WEIGHTS = "model.safetensors"
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
"""llama.cpp's names of a Llama's weights -> transformers'."""


def pack(folder: Path, gguf: Path, out: Path, parts: int = 2) -> None:
    """Write the model's weights as `parts` files, and its other files beside the first."""
    from gguf import GGUFReader
    from safetensors.numpy import save

    config = json.loads((folder / "config.json").read_text())
    heads = {
        "attn_q": config["num_attention_heads"],
        "attn_k": config["num_key_value_heads"],
    }
    raw: dict[str, np.ndarray] = {}
    for tensor in GGUFReader(gguf).tensors:
        found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", tensor.name)
        assert found is not None, tensor.name
        layer, kind = found.groups()
        name = (f"model.layers.{layer}." if layer else "") + NAMES[kind] + ".weight"
        data = np.array(tensor.data)
        if kind in heads:  # llama.cpp interleaves the two halves of each head
            shape = (heads[kind], len(data) // heads[kind] // 2, 2, *data.shape[1:])
            data = data.reshape(shape).swapaxes(1, 2).reshape(data.shape)
        raw[f"{tensor.tensor_type.name}/{name}"] = np.ascontiguousarray(data)
    packed = save(raw)
    out.mkdir(parents=True, exist_ok=True)
    each = -(-len(packed) // parts)
    for i in range(parts):
        part = out / f"model-{i + 1}"
        part.mkdir(exist_ok=True)
        (part / f"weights.{i + 1}").write_bytes(packed[i * each : (i + 1) * each])
    for path in folder.iterdir():
        if path.name != WEIGHTS:
            shutil.copy(path, out / "model-1" / path.name)
    (out / "model-1" / "parts.json").write_text(
        json.dumps(
            {
                "parts": parts,
                "packed": hashlib.sha256(packed).hexdigest(),
                "weights": _hash(folder / WEIGHTS),
            }
        )
    )


def join(source: Path, folder: Path) -> None:
    """Make the model's folder again from `source/model-1`, `source/model-2`, ...

    ValueError where a part is missing or the weights are not those that were packed.
    """
    from safetensors.numpy import load, save_file

    first = source / "model-1"
    said = json.loads((first / "parts.json").read_text())
    files = [source / f"model-{i + 1}" / f"weights.{i + 1}" for i in range(said["parts"])]
    if missing := [str(path) for path in files if not path.exists()]:
        raise ValueError(f"parts of the model are missing: {', '.join(missing)}")
    packed = b"".join(path.read_bytes() for path in files)
    if hashlib.sha256(packed).hexdigest() != said["packed"]:
        raise ValueError(f"the model's parts in {source} are not those that were packed")
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name.partition("/")[2]: _floats(name.partition("/")[0], data)
        for name, data in load(packed).items()
    }
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    if _hash(folder / WEIGHTS) != said["weights"]:
        raise ValueError("the joined model is not, byte for byte, the one that was packed")
    for path in first.iterdir():
        if path.name != "parts.json" and not path.name.startswith("weights."):
            shutil.copy(path, folder / path.name)


def _floats(kind: str, data: np.ndarray) -> Any:
    """Blocks of 32 weights as float32: [rows, columns]."""
    if kind == "F32":
        return data.astype(np.float32)
    rows = len(data)
    if kind == "Q8_0":  # a float16 scale, 32 int8
        blocks = data.reshape(rows, -1, 34)
        scale = blocks[..., :2].copy().view(np.float16).astype(np.float32)
        return (blocks[..., 2:].view(np.int8).astype(np.float32) * scale).reshape(rows, -1)
    if kind == "Q4_1":  # float16 scale and least, 32 halves of bytes: low ones first
        blocks = data.reshape(rows, -1, 20)
        scale = blocks[..., :2].copy().view(np.float16).astype(np.float32)
        least = blocks[..., 2:4].copy().view(np.float16).astype(np.float32)
        halves = np.concatenate([blocks[..., 4:] & 15, blocks[..., 4:] >> 4], -1)
        return (halves.astype(np.float32) * scale + least).reshape(rows, -1)
    raise ValueError(f"weights of type {kind} are not known here")


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    verb, *given = sys.argv[1:]
    if verb == "pack":
        pack(Path(given[0]), Path(given[1]), Path(given[2]), int((given[3:] or ["2"])[0]))
    else:
        join(Path(given[0]), Path(given[1]))
