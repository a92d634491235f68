"""What passes between host and device, counted where there is no GPU: on the device `meta`, which holds no values.

Whatever would make the host wait for a value raises there, but for copies to the host: they are counted here, and
bring zeros. What cannot be seen is a list that becomes a tensor on the device; the tests marked `cuda` see that too.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Traffic(TorchDispatchMode):
    """Attributes: `to_host` and `to_device`, the bytes of each copy; `launches`, operations that the device runs."""

    def __init__(self):
        super().__init__()
        self.to_host, self.to_device, self.launches = [], [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default:
            there = torch.device(kwargs.get("device") or args[0].device)
            if args[0].is_meta and there.type == "cpu":
                self.to_host.append(args[0].nbytes)
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
            if not args[0].is_meta and there.type == "meta":
                self.to_device.append(args[0].nbytes)
        elif func is torch.ops.aten.copy_.default and args[0].is_meta != args[1].is_meta:
            self.to_device.append(args[1].nbytes)
        elif func is torch.ops.aten.index.Tensor and args[0].is_meta:
            self.to_device.extend(index.nbytes for index in args[1] if index is not None and not index.is_meta)
        found = func(*args, **kwargs)
        first = found[0] if isinstance(found, (list, tuple)) and found else found
        views = func._schema.returns and func._schema.returns[0].alias_info is not None
        writes = any(
            argument.alias_info is not None and argument.alias_info.is_write for argument in func._schema.arguments
        )
        if isinstance(first, torch.Tensor) and first.is_meta and (writes or not views):
            self.launches += 1
        return found
