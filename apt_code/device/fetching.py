"""What a selection has to know of a batch on a device, and how it comes to the host: in one copy for all batches."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Evidence:
    """What a selection has to know of a batch.

    Attributes:
        maps: `{side in px: (b, rows, cols)}` float32, importance maps; empty where no pixel has to be read.
        sums: `{size: (b, c, rows, cols)}` int64 as `flat_sums`, for the flat rule alone.
        pixels: the batch itself, where dropping has to see it; else `None`.
    """

    maps: dict[int, Tensor] = field(default_factory=dict)
    sums: dict[int, Tensor] = field(default_factory=dict)
    pixels: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        return [*self.maps.values(), *self.sums.values(), *([] if self.pixels is None else [self.pixels])]

    def with_tensors(self, tensors: Sequence[Tensor]) -> Evidence:
        """The same, with other tensors in the order of `tensors()`."""
        rest = iter(tensors)
        maps, sums = ({key: next(rest) for key in group} for group in (self.maps, self.sums))
        return Evidence(maps, sums, next(rest, None))


def fetch(found: Sequence[Evidence]) -> list[Evidence]:
    """The evidence of all batches on the host; a device is waited for once."""
    tensors = [tensor for one in found for tensor in one.tensors()]
    rest = iter(to_host(tensors))
    return [one.with_tensors([next(rest) for _ in one.tensors()]) for one in found]


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of any dtypes, packed into one row of bytes on their device, copied, and unpacked; without gradients.

    Of several devices, each is waited for once.
    """
    # wide ones first, so that each begins where its dtype may
    order = sorted(range(len(tensors)), key=lambda i: (str(tensors[i].device), -tensors[i].element_size()))
    host: dict[int, Tensor] = {}
    for _, members in itertools.groupby(order, key=lambda i: tensors[i].device):
        of_device = list(members)
        flat = [tensors[i].detach().reshape(-1).view(torch.uint8) for i in of_device]
        parts = torch.cat(flat).cpu().split([len(part) for part in flat])
        for i, part in zip(of_device, parts, strict=True):
            host[i] = part.view(tensors[i].dtype).view(tensors[i].shape)
    return [host[i] for i in range(len(tensors))]
