"""Images that lie on a GPU: the host waits for it once a call, whatever the number and the shapes of the images.

Whatever the selection has to know is computed there, for all batches of a call, and fetched in one copy; the selection
itself is the one of the CPU, which takes its steps one by one. Then one copy tells the GPU which patches to pack.
Nothing else here may ask for a value that lies on the device, or copy an ordinary list to it: both make the host wait.
"""

from torch import Tensor


def on_device(images: Tensor) -> bool:
    """Whether images lie somewhere else than in the host's memory."""
    return images.device.type != "cpu"
