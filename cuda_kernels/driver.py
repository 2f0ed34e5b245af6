"""CUDA's driver: loads a compiled kernel on a device, and launches it on torch's current stream."""

from __future__ import annotations

import ctypes
from functools import cache

import torch

from .build import BuildError, Specialization, image


def launch(
    device: torch.device, spec: Specialization, grid: tuple[int, int], threads: int, params: ctypes.Structure
) -> None:
    """Enqueues a kernel on the current stream of a device, without allocation or synchronization.

    Only the first launch of a specialization compiles and loads it, unless `load` has. It cannot be captured.

    Raises:
        BuildError: the kernel cannot be compiled or loaded, or is not loaded yet while the stream is captured.
        RuntimeError: the driver refuses the launch; the message is the driver's.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    with torch.cuda.device(index):
        _use_context(index)
        function = _function(index, spec)
        stream = torch.cuda.current_stream(index).cuda_stream
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(params))
        _call("cuLaunchKernel", function, *grid, 1, threads, 1, 1, 0, ctypes.c_void_p(stream), arguments, None)


def load(device: torch.device, spec: Specialization) -> None:
    """Compiles a kernel, if it is not compiled yet, and loads it on a device.

    Raises:
        BuildError: the kernel cannot be compiled or loaded.
        OSError, RuntimeError: there is no driver, or it refuses.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    with torch.cuda.device(index):
        _use_context(index)
        _function(index, spec)


def _use_context(index: int) -> None:
    """Makes torch's context of the device current in this thread, also before torch has called the driver."""
    context = ctypes.c_void_p()
    _call("cuCtxGetCurrent", ctypes.byref(context))
    if not context:
        _call("cuCtxSetCurrent", _primary_context(index))


@cache
def _primary_context(index: int) -> ctypes.c_void_p:
    context = ctypes.c_void_p()
    _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), index)
    return context


@cache
def _function(index: int, spec: Specialization) -> ctypes.c_void_p:
    """The kernel, loaded on a device. Its module stays loaded."""
    if torch.cuda.is_current_stream_capturing():
        raise BuildError(f"{spec} is not loaded, and cannot be loaded while a graph is captured: launch it once before")
    compiled = image(spec, torch.cuda.get_device_capability(index))
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    try:
        _call("cuModuleLoadData", ctypes.byref(module), compiled)
        _call("cuModuleGetFunction", ctypes.byref(function), module, spec.kernel.encode())
    except RuntimeError as error:
        raise BuildError(f"cannot load {spec}: {error}") from error
    return function


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _call(name: str, *arguments: object) -> None:
    status = getattr(_library(), name)(*arguments)
    if status:
        message = ctypes.c_char_p()
        _library().cuGetErrorString(status, ctypes.byref(message))
        raise RuntimeError(f"{name}: error {status}, {(message.value or b'unknown').decode()}")
