"""Memory that every batch uses again: fresh megabytes cost more time to be mapped than to be filled."""

import itertools
import math
import threading

import torch
from torch import Tensor

_spaces = threading.local()  # two threads must not write into one
_numbers = itertools.count()  # of calls, in all threads


def workspace(name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """A tensor with undefined content, valid until the next call with the same name.

    Never part of an autograd graph: what is needed for a backward pass must be computed anew or copied.

    Parameters
    ----------
    name
        What it is for; as many tensors can be in use at once as there are names.
    like
        Gives the type and the device.
    """
    key, size = _key(name, like), math.prod(shape)
    space, _ = getattr(_spaces, key, (None, None))
    if space is None or len(space) < size:
        with torch.inference_mode(False):  # a tensor made for inference could not serve training later
            space = torch.empty(size, dtype=like.dtype, device=like.device)
    setattr(_spaces, key, (space, next(_numbers)))
    return space[:size].view(shape)


def last_call(name: str, like: Tensor) -> int | None:
    """A number of this thread's last call with that name: as long as it stays, so does what was written since."""
    _, number = getattr(_spaces, _key(name, like), (None, None))
    return number


def _key(name: str, like: Tensor) -> str:
    return f"{name} {like.dtype} {like.device}"
