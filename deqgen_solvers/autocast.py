"""The caller's autocast holds inside f and nowhere else.

Autocast would run a solver's inner products in half precision, where differences of nearly equal
vectors vanish, so ``solve`` switches it off around itself and on again around each call of f.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


class Autocast:
    """What autocast was set to on a device when the solve began."""

    def __init__(self, device: torch.device) -> None:
        self.device_type = device.type
        self.available = torch.amp.is_autocast_available(device.type)
        self.active = self.available and torch.is_autocast_enabled(device.type)
        self.dtype = torch.get_autocast_dtype(device.type) if self.active else None

    def off(self) -> AbstractContextManager[object]:
        """Plain arithmetic."""
        return torch.autocast(self.device_type, enabled=False) if self.active else nullcontext()

    def on(self) -> AbstractContextManager[object]:
        """What the caller had set; off, too, where a backward pass is under another autocast."""
        if self.active:
            return torch.autocast(self.device_type, self.dtype)
        if self.available and torch.is_autocast_enabled(self.device_type):
            return torch.autocast(self.device_type, enabled=False)
        return nullcontext()
