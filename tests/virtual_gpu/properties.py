"""What the virtual GPU says of itself: one device, an H100 with few processors."""

import ctypes
import os
from typing import ClassVar

from .calls import INVALID_DEVICE, SIZE, CudaError, I, P, U, imitates, put


class Device:
    """What the virtual GPU says it is: an H100 with few processors, so that small cases are cut into few parts."""

    name = b"Virtual GPU"
    compute = (9, 0)
    memory = 8 << 30
    attributes: ClassVar = {  # cudaDeviceAttr's numbers (driver_types.h)
        1: 1024, 2: 1024, 3: 1024, 4: 64, 5: 2**31 - 1, 6: 65535, 7: 65535, 8: 48 << 10, 9: 64 << 10, 10: 32,
        12: 65536, 13: 1755000, 16: 8, 31: 1, 36: 2619000, 37: 5120, 38: 50 << 20, 39: 2048, 41: 1, 75: 9, 76: 0,
        81: 228 << 10, 82: 65536, 97: 227 << 10, 106: 32, 111: 1024,
    }  # fmt: skip


class Properties(ctypes.Structure):
    """The beginning of cudaDeviceProp; what follows is left as the caller has it."""

    _fields_ = (
        ("name", ctypes.c_char * 256), ("uuid", ctypes.c_char * 16), ("luid", ctypes.c_char * 8), ("nodes", U),
        ("totalGlobalMem", SIZE), ("sharedMemPerBlock", SIZE), ("regsPerBlock", I), ("warpSize", I),
        ("memPitch", SIZE), ("maxThreadsPerBlock", I), ("maxThreadsDim", I * 3), ("maxGridSize", I * 3),
        ("totalConstMem", SIZE), ("major", I), ("minor", I), ("textureAlignment", SIZE * 2),
        ("multiProcessorCount", I),
    )  # fmt: skip


@imitates("cudaGetDeviceCount", P)
def get_device_count(out):
    put(out, 1, I)


@imitates("cudaGetDevice", P)
def get_device(out):
    put(out, 0, I)


@imitates("cuCtxGetDevice", P)
def get_context_device(out):
    put(out, 0, I)


@imitates("cudaSetDevice", I)
def set_device(device):
    if device != 0:
        raise CudaError(INVALID_DEVICE)


@imitates("cudaDriverGetVersion", P)
def driver_version(out):
    put(out, 13000, I)


@imitates("cudaDeviceGetAttribute", P, I, I)
def device_attribute(out, attribute, device):
    put(out, Device.attributes.get(attribute, 0), I)


@imitates("cudaGetDeviceProperties", P, I)
def device_properties(out, device):
    a = Device.attributes
    p = Properties.from_address(out)
    p.name, p.uuid, p.totalGlobalMem, p.sharedMemPerBlock = Device.name, b"virtual", Device.memory, a[8]
    p.regsPerBlock, p.warpSize, p.maxThreadsPerBlock, p.multiProcessorCount = a[12], a[10], a[1], a[16]
    p.maxThreadsDim[:], p.maxGridSize[:], (p.major, p.minor) = (a[2], a[3], a[4]), (a[5], a[6], a[7]), Device.compute


@imitates("cudaDeviceGetPCIBusId", P, I, I)
def device_bus(out, length, device):
    """Each of the processes that mpiexec started on this machine has a virtual GPU of its own."""
    ctypes.memmove(out, b"0000:%02X:00.0\0" % int(os.environ.get("PMI_RANK", 0)), 13)


@imitates("cudaGetLastError")
def last_error():
    pass  # every error has been returned


@imitates("cuCtxGetCurrent", P)
def current_context(out):
    put(out, 1, SIZE)
