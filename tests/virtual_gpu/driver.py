"""The CUDA driver as CuPy calls it: modules, kernels and their launches."""

import ctypes

from .calls import HANDLES, INVALID_VALUE, NOT_FOUND, SIZE, CudaError, I, P, U, imitates, put
from .device import Kernel, Module
from .properties import Device
from .runtime import submit

MODULES: dict[int, Module] = {}
KERNELS: dict[int, Kernel] = {}


@imitates("cuModuleLoadData", P, P)
def module_load(out, image):
    handle = next(HANDLES)
    MODULES[handle] = Module(ctypes.string_at(image).decode())
    put(out, handle, SIZE)


@imitates("cuModuleUnload", P)
def module_unload(module):
    MODULES.pop(module, None)  # its library stays loaded: a graph may hold its kernels


@imitates("cuModuleGetFunction", P, P, ctypes.c_char_p)
def module_function(out, module, name):
    kernel = MODULES[module].kernels.get(name.decode())
    if kernel is None:
        raise CudaError(NOT_FOUND)
    handle = next(HANDLES)
    KERNELS[handle] = kernel
    put(out, handle, SIZE)


@imitates("cuFuncGetAttribute", P, I, P)
def function_attribute(out, attribute, function):
    kernel = KERNELS[function]
    put(out, {0: 1024, 1: kernel.shared, 5: 90, 6: 90, 8: kernel.dynamic_limit}.get(attribute, 0), I)


@imitates("cuFuncSetAttribute", P, I, I)
def function_set_attribute(function, attribute, value):
    kernel = KERNELS[function]
    if attribute == 8:
        if value + kernel.shared > Device.attributes[97]:
            raise CudaError(INVALID_VALUE)
        kernel.dynamic_limit = value


@imitates("cuLaunchKernel", P, *[U] * 7, P, P, P)
def launch_kernel(function, gx, gy, gz, bx, by, bz, shared, stream, parameters, extra):
    kernel = KERNELS[function]
    a = Device.attributes
    too_many = bx * by * bz > a[1] or bx > a[2] or by > a[3] or bz > a[4] or gy > a[6] or gz > a[7]
    if not gx * gy * gz * bx * by * bz or too_many or shared > kernel.dynamic_limit:
        raise CudaError(INVALID_VALUE)
    values = kernel.pack(parameters)
    submit(stream, "launch", lambda: kernel.launch((gx, gy, gz), (bx, by, bz), shared, values))


@imitates("cuOccupancyMaxActiveBlocksPerMultiprocessor", P, P, I, SIZE)
def occupancy(out, function, threads, shared):
    put(out, max(1, 2048 // max(threads, 1)), I)


@imitates("cuStreamGetCtx", P, P)
def stream_context(stream, out):
    put(out, 1, SIZE)


MESSAGE = ctypes.create_string_buffer(b"the virtual GPU refused this call")


@imitates("cuGetErrorName", I, P)
def error_name(code, out):
    put(out, ctypes.addressof(MESSAGE), SIZE)


@imitates("cuGetErrorString", I, P)
def error_string(code, out):
    put(out, ctypes.addressof(MESSAGE), SIZE)
