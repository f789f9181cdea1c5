"""Arrays on the device of a model, without waiting for what the device still has to do."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch


def to_device(
    array: npt.NDArray[np.generic], device: torch.device | str, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """A tensor of `array` on `device`. From memory that cannot move, a GPU fetches it by itself;
    from any other, the caller would wait until all work before it is done."""
    tensor = torch.as_tensor(array, dtype=dtype)
    device = torch.device(device)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
