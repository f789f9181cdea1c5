"""vLLM's weight-transfer engine that reads a complete set of weights from a file of this machine.

Whatever way they came, the actor has put them into one file (often one in memory) and verified
them there. Runs inside vLLM's worker process. Everything that arrives is applied or nothing is: a
payload that fails half-way leaves the model loadable, so that the last good weights can be put
back.

vLLM repacks linear weights after loading, so a plain `load_weights` into a live model fails; the
layerwise reload restores the checkpoint layout, loads, and packs again into the same storage.
"""

from __future__ import annotations

import logging
import mmap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from protocol.wire.messages import PlacedWeights

DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""safetensors dtype names that weights may have."""


@dataclass
class InitInfo(WeightTransferInitInfo):
    """Said once, by the actor that started this engine."""

    run_id: str
    """For messages."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """One update."""

    manifest: dict[str, Any]
    """A `protocol.wire.messages.PlacedWeights` as plain data."""


class FileWeightEngine(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Loads weights in checkpoint format from one file."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    supports_draft_weight_update = False

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Nothing to set up: every update names its file, which our own process has verified."""
        # vLLM warns of a tied output layer and of rotary tables at every update; what is really
        # missing we find ourselves.
        logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(
            logging.ERROR
        )

    def start_weight_update(self) -> None:
        """Bring the layers back to checkpoint layout, on the meta device."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        # Where reload leaves a layer untouched its names are unchanged: these are all there are.
        self._expected = {name for name, _ in self.model.named_parameters()}
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """As the base class, without `torch.accelerator.synchronize()`, which raises on CPU."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Load every tensor of the payload; ValueError where the model wants another set."""
        try:
            loaded = self.model.load_weights(self._tensors(update_info))
            missing = sorted(self._expected - set(loaded))
            if missing:
                raise ValueError(
                    f"the payload lacks {len(missing)} of the model's parameters: {missing[:3]}"
                )
        except BaseException:
            # Layers that wait for more would stay on the meta device for ever.
            self.finish_weight_update()
            raise

    def finish_weight_update(self) -> None:
        """Pack the layers again."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        _repack_tied(self.model)
        if self.device.type == "cpu":
            _repack_experts(self.model)

    def shutdown(self) -> None:
        """Nothing to release."""

    def _tensors(self, info: UpdateInfo) -> Iterator[tuple[str, torch.Tensor]]:
        # The actor has checked every hash while we were generating, and keeps the file as it is
        # until it has answered.
        manifest = msgspec.convert(info.manifest, PlacedWeights)
        with open(manifest.path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        payload = memoryview(mapped)[manifest.start : manifest.start + manifest.nbytes]
        for spec in manifest.tensors:
            if spec.dtype not in DTYPES:
                raise ValueError(
                    f"tensor {spec.name!r} has dtype {spec.dtype}; weights may be {list(DTYPES)}"
                )
            data = payload[spec.offset : spec.offset + spec.nbytes]
            with warnings.catch_warnings():
                # It is mapped read-only, and loading only reads.
                warnings.filterwarnings("ignore", message="The given buffer is not writable")
                flat = torch.frombuffer(data, dtype=DTYPES[spec.dtype])
            yield spec.name, flat.view(spec.shape)


def _repack_tied(model: torch.nn.Module) -> None:
    """Pack the output head again where it is tied to the embedding.

    A tied head receives no weights of its own, so the layerwise reload leaves it alone; on CPU it
    would go on multiplying with the packed copy of the old embedding that it made when it started.
    """
    layers: dict[int, list[torch.nn.Module]] = {}
    for layer in model.modules():
        weight = layer._parameters.get("weight")
        if weight is not None:
            layers.setdefault(id(weight), []).append(layer)
    for tied in layers.values():
        for layer in tied if len(tied) > 1 else ():
            if hasattr(layer, "cpu_linear"):
                layer.quant_method.process_weights_after_loading(layer)


def _repack_experts(model: torch.nn.Module) -> None:
    """Pack the experts of a mixture again.

    vLLM packs them for its CPU kernel when it sets that kernel up, once; a reload copies the plain
    weights into the packed ones' place, and the kernel would read them as if they were packed.
    """
    for layer in model.modules():
        kernel = getattr(getattr(layer, "quant_method", None), "moe_kernel", None)
        if kernel is not None:
            kernel.fused_experts.process_weights_after_loading(layer)
