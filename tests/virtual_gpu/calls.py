"""How a Python function takes the place of a C function."""

import ctypes
import sys
import traceback
from collections.abc import Callable
from itertools import count
from typing import Any

P, I, U, SIZE, FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint, ctypes.c_size_t, ctypes.c_float

INVALID_VALUE, OUT_OF_MEMORY, INVALID_DEVICE, INVALID_HANDLE, NOT_FOUND = 1, 2, 101, 400, 500
LAUNCH_FAILED, INVALID_CONFIGURATION, CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED = 719, 9, 900, 901
CAPTURE_UNJOINED, CAPTURE_ISOLATION = 904, 905
HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2


class CudaError(Exception):
    """An error code to return to the caller."""


FUNCTIONS: dict[str, Any] = {}  # by name: the callback, which must not be garbage-collected


def imitates(name: str, *types: Any) -> Callable:
    """Make a Python function the C function `name`: what it raises becomes an error code, otherwise it returns 0."""

    def wrap(function: Callable) -> Callable:
        finishing = sys.is_finalizing  # kept here: CuPy gives things back when modules are already gone

        def call(*arguments: Any) -> int:
            try:
                if not finishing():
                    function(*arguments)
                return 0
            except CudaError as error:
                return error.args[0]
            except BaseException:
                traceback.print_exc(file=sys.stderr)
                return LAUNCH_FAILED

        FUNCTIONS[name] = ctypes.CFUNCTYPE(I, *types)(call)
        return function

    return wrap


def put(pointer: int, value: Any, kind: Any) -> None:
    """*pointer = value"""
    ctypes.cast(pointer, ctypes.POINTER(kind))[0] = value


HANDLES = count(0x1000, 16)
