"""Tensors on a GPU that RDMA reads into: GPUDirect.

Role: `fs.readv_into(ranges, device_memory(tensor))` has the daemons' cards write straight into the
tensor; next hop: client/reader.py. The CUDA driver is loaded when this is first used, and gives a
dma-buf for the pages that the tensor lies in, which the RDMA device is told of for each call.

Invariants: the tensor stays alive as long as what is returned here. What lands in it is not
checked: the CPU cannot see it (`verify=False`). A kernel that is to read the tensor may start when
`readv_into` has returned, and must not run on it before.

Failure behaviour: InvalidError for a tensor that is no such; TransportError where there is no CUDA
driver, or it gives no dma-buf (open kernel modules and a data centre GPU do).
"""

from __future__ import annotations

import ctypes
import mmap
import os
from functools import cache
from typing import Any, Final

import torch

from ffs.client.rdma import DeviceMemory
from ffs.errors import InvalidError, TransportError

_DMABUF: Final = 1
"""CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD"""


def device_memory(tensor: torch.Tensor) -> DeviceMemory:
    """Return a tensor's memory for `readv_into`.

    Raises:  InvalidError, TransportError
    """
    if not tensor.is_cuda or not tensor.is_contiguous() or tensor.nbytes == 0:
        raise InvalidError(
            "no contiguous tensor with elements on a CUDA device",
            hint="pass other tensors as tensor.numpy()",
            device=str(tensor.device),
        )
    start, page = tensor.data_ptr(), mmap.PAGESIZE
    first, end = start - start % page, -(-(start + tensor.nbytes) // page) * page
    with torch.cuda.device(tensor.device):
        fd = _dmabuf(first, end - first)
    try:
        return DeviceMemory(fd, tensor.nbytes, start, offset=start - first, owner=tensor)
    finally:
        os.close(fd)


def _dmabuf(first: int, length: int) -> int:
    fd = ctypes.c_int(-1)
    status = _driver().cuMemGetHandleForAddressRange(
        ctypes.byref(fd),
        ctypes.c_ulonglong(first),
        ctypes.c_size_t(length),
        ctypes.c_int(_DMABUF),
        ctypes.c_ulonglong(0),
    )
    if status != 0:
        raise TransportError(
            f"the CUDA driver gives no dma-buf for the tensor: error {status}",
            hint="a data centre GPU with NVIDIA's open kernel modules does",
        )
    return fd.value


@cache
def _driver() -> Any:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        driver.cuMemGetHandleForAddressRange  # noqa: B018 - is it there?
    except (OSError, AttributeError) as error:
        raise TransportError(
            f"no CUDA driver that gives dma-bufs: {error}", hint="CUDA 11.7 and later do"
        ) from error
    return driver
