"""A compiler that misbehaves as it is told, in place of Triton's. For processes that a test starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import triton
from triton.compiler.errors import CompilationError


def install(behaviour: dict[str, str], folder: str) -> None:
    """Replaces `triton.compile`: `behaviour` names what it does for a kernel; it does nothing for others."""

    def compile_kernel(source: Any, target: Any, options: Any) -> Any:
        name = source.fn.__name__
        match behaviour.get(name, ""):
            case "pages":
                os.write(2, b"kernel.py:3:1: note: see current operation\nkernel.py:7:2: error: operand #0 is wrong\n")
                raise RuntimeError("PassManager::run failed")
            case "source":
                raise CompilationError("x = 1\ny = z", None, "z is not defined")
            case "memory":
                try:
                    raise MemoryError
                except MemoryError as error:  # as Triton does it
                    raise CompilationError("x = 1\ny = z", None, repr(error)) from None
            case "file":
                raise CompilationError("x = 1\ny = z", None, "in a function") from OSError("No space left on device")
            case "wait":
                signal.alarm(0)
                Path(folder, "worker.new").write_text(str(os.getpid()))
                os.replace(Path(folder, "worker.new"), Path(folder, "worker"))
                signal.pause()
            case "abort":
                os.write(2, b"compiler.cpp:12: Assertion `x > 0' failed.\n")
                os.kill(os.getpid(), signal.SIGABRT)
            case "hang":
                assembler = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
                Path(folder, "assembler").write_text(str(assembler.pid))
                if signal.alarm(1):  # only where there is a limit already, which is brought forward
                    signal.pause()
            case "exit":
                os._exit(3)
        return SimpleNamespace(metadata=SimpleNamespace(shared=1 << 20))

    triton.compile = compile_kernel
