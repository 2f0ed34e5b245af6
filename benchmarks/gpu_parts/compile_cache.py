"""Compiles Triton kernels for a card that this machine lacks, for use on a machine that has the card.

    python -m benchmarks.gpu_parts.compile_cache build/triton-sm90 --capability 90 --wheel triton-3.6.0-cp312-....whl

Runs the steps of the published models with a driver that launches nothing, and keeps the kernels that Triton compiles.
`python -m benchmarks.gpu --compiled build/triton-sm90` uses them on the other machine, and prints how many kernels were
missing. Run this command from the commit that is to be measured.

Triton finds a compiled kernel by a key. The key depends on the kernel's source and its line number, the types and
constants of the launch, the target, Triton's own files, the versions of its ptxas and libdevice, and environment
variables such as TRITON_F32_DEFAULT. It does not depend on the folder, on the user, or on Python 3.11 or 3.12 (compared
for Triton 3.6.0). Triton's wheels for two versions of Python differ in one file, libtriton.so: --wheel names the wheel
of the other machine, if it is not the one installed here.

A build of the same version from another place, such as download.pytorch.org, has another libtriton.so: then no kernel
of the folder is found, and all are compiled again. This command prints "triton_key" at its end. The kernels are found
where the part `limits` has the same "triton_key" in its "about", which also has the environment variables.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from triton.runtime import cache

from rwkv_batch.engine.sampler import Sampler
from rwkv_batch.engine.slot_tables import Vocabulary
from rwkv_batch.engine.state_pool import StatePool, pool_parts
from rwkv_batch.models.model import Model, ModelFile
from rwkv_batch.models.placement import Placement
from rwkv_batch.models.rows import RecordedRows, Rows, padding_rows
from rwkv_batch.ops import Implementation, OpChoice, OpSpec, OpTable

from ..roofline import MODELS, Sizes
from .compiled import count
from .context import DEFAULT_MODELS
from .device import key_digest
from .fake_driver import SHARED_BYTES, FakeDriver
from .random_model import random_checkpoint

CPU = torch.device("cpu")
BATCHES = (1, 16, 64, 256, 300)
NUM_LAYERS = 2
LIBRARY = "triton/_C/libtriton.so"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder for the kernels, which is replaced; git should ignore it")
    parser.add_argument(
        "--capability", type=int, default=90, choices=SHARED_BYTES, help="compute capability of the card (90)"
    )
    parser.add_argument("--wheel", type=Path, metavar="FILE", help="wheel of the Triton on the other machine")
    parser.add_argument(
        "--models",
        nargs="+",
        default=DEFAULT_MODELS,
        choices=MODELS,
        metavar="NAME",
        help="published sizes (%(default)s)",
    )
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    FakeDriver(options.capability).install()
    triton.knobs.cache.dir = str(options.folder.resolve())
    triton.knobs.compilation.store_binary_only = True
    with ExitStack() as stack:
        if options.wheel:
            stack.enter_context(patch.object(cache, "triton_key", key_with(options.wheel)))
        fill({name: MODELS[name] for name in options.models})
        print(f"triton_key {key_digest()}")
    size = sum(path.stat().st_size for path in options.folder.rglob("*") if path.is_file())
    print(f"{count(options.folder)} kernels, {size / 2**20:.1f} MiB, for sm_{options.capability}")
    return 0


def key_with(wheel: Path) -> Callable[[], str]:
    """Returns a replacement of `triton_key` that gives the key of an installation of this wheel.

    Raises:
        ValueError: the wheel and the Triton installed here are of different versions.
    """
    own = Path(triton.__file__).parents[1]
    with zipfile.ZipFile(wheel) as archive:
        for path in sorted((own / "triton").rglob("*.py")):
            name = str(path.relative_to(own))
            if name not in archive.namelist() or archive.read(name) != path.read_bytes():
                raise ValueError(f"{wheel.name}: {name} is not that of the installed triton {triton.__version__}")
        library = hashlib.sha256(archive.read(LIBRARY)).hexdigest()
    key = cache.triton_key().replace(hashlib.sha256((own / LIBRARY).read_bytes()).hexdigest(), library)
    return lambda: key


def fill(models: dict[str, Sizes]) -> None:
    """Compiles all kernels that steps of these models launch."""

    def multiply(a: Tensor, b: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        return a.new_empty(*a.shape[:-1], b.shape[-1], dtype=out_dtype or a.dtype)

    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        # Products of torch would take time, and nothing reads their results.
        for name in ("mm", "bmm"):
            stack.enter_context(patch.object(torch, name, multiply))
        for name in ("addmm_", "baddbmm_"):
            stack.enter_context(patch.object(Tensor, name, lambda self, *factors: self))
        for name, sizes in models.items():
            file = ModelFile.open(random_checkpoint(replace(sizes, L=NUM_LAYERS), CPU))
            for state, is_invariant in ((torch.float32, False), (torch.float16, False), (torch.float32, True)):
                print(f"{name}, {state}{', batch invariant' if is_invariant else ''}", file=sys.stderr, flush=True)
                model = model_of(file, state, is_invariant)
                for rows in steps():
                    run(model, rows)


def steps() -> Iterator[Rows]:
    """Yields decode steps, a prompt alone, and prompts beside rows that decode."""
    for B in BATCHES:
        yield padding_rows(B, CPU)  # type: ignore[misc]
    for lengths in ((600,), (*(1,) * 256, *(150,) * 4)):
        yield Rows(tuple(range(len(lengths))), lengths, CPU, (0,) * len(lengths))


def model_of(file: ModelFile, state: torch.dtype, is_invariant: bool) -> Model:
    """Makes a bfloat16 model with Triton's ops and tensors in host memory."""
    implementations, choices = {}, []
    for spec in dict.fromkeys((*file.ops, *Sampler.OPS)):
        module = _kernels(spec)
        kernel = None if module is None else Implementation.of(spec.name, module)
        implementations[spec.name] = kernel or Implementation(spec.definition)
        backend = "triton" if kernel else "reference"
        choices.append(OpChoice(spec.name, backend, (), is_recorded=spec.is_recorded))
    placement = Placement(CPU, torch.bfloat16, None, state)
    return Model(file, placement, OpTable(implementations, choices), batch_invariant=is_invariant)


def _kernels(spec: OpSpec) -> Any:
    """Finds the module that serves an op; None if the definition serves it."""
    name = f"rwkv_batch.triton_kernels.{spec.name}"
    if find_spec(name) is None:
        return None
    module = import_module(name)
    prefers_definition = getattr(module, "prefers_definition", None)
    is_declined = spec.optional and prefers_definition is not None and prefers_definition(torch.bfloat16)
    return None if is_declined else module


def run(model: Model, rows: Rows) -> None:
    """Launches one step."""
    num_rows = len(rows.slot_index)
    num_tokens = num_rows if isinstance(rows, RecordedRows) else rows.num_tokens
    pool = StatePool(pool_parts(model.file, model.placement), num_rows)
    sampler = Sampler(num_rows, Vocabulary.plain(model.sizes["V"]), CPU, model.ops)
    hidden = model.forward(torch.zeros(num_tokens, dtype=torch.int64), rows, pool.layers)
    logits = torch.empty(num_rows, model.sizes["V"])
    sampler.draw(model.logits(hidden[:num_rows], out=logits), rows.slot_index)


if __name__ == "__main__":
    sys.exit(main())
