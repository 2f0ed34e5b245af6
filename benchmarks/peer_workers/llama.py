"""Worker for llama.cpp through `llama-cpp-python`: parallel sequences in one context. The form is the GGUF type.

A step is one `llama_decode` of one token for every sequence. One argmax over all rows chooses the most likely tokens,
which is cheaper than any of llama.cpp's own samplers. `benchmarks.gguf_file` writes F32, F16 and BF16 files;
llama.cpp's quantizer makes the others from the F32 file. "Q4_0 pure" quantizes embedding and head too.
"""

from __future__ import annotations

import ctypes
from importlib.metadata import version
from pathlib import Path

import numpy

from .protocol import Peer, Task, log_softmax, serve

FLOAT_FORMS = ("F32", "F16", "BF16")
_BATCH_TOKENS = 2048
_PIECE_TOKENS = 512
"""Tokens of a call, and of one pass over the graph: the values of llama.cpp's own benchmark."""


class Llama(Peer):
    what = "takes the most likely token"

    def __init__(self, task: Task) -> None:
        import llama_cpp

        self._llama = llama_cpp
        self.version = version("llama-cpp-python")
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            str(_gguf(task)).encode(), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise RuntimeError("llama.cpp could not load the file; its error is above")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = task.batch_size * task.row_tokens
        params.n_batch, params.n_ubatch = _BATCH_TOKENS, _PIECE_TOKENS
        params.n_seq_max = task.batch_size
        params.n_threads = params.n_threads_batch = task.threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError("llama.cpp could not make a context; its error is above")
        self._vocab_size = task.vocab_size
        self._batch = llama_cpp.llama_batch_init(_BATCH_TOKENS, 0, 1)

    def complete(self, prompts: list[list[int]], num_tokens: int) -> None:
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), True)
        tokens = self._feed_prompts(prompts).argmax(axis=1)
        for step in range(1, num_tokens):
            position = len(prompts[0]) + step - 1
            rows = [(int(token), position, row, True) for row, token in enumerate(tokens)]
            tokens = self._decode(rows).argmax(axis=1)

    def logprobs(self, prompt: list[int], candidates: list[int]) -> list[float]:
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), True)
        return log_softmax(self._feed_prompts([prompt])[0], candidates)

    def _feed_prompts(self, prompts: list[list[int]]) -> numpy.ndarray:
        """Reads the prompts, as many in a call as fit; returns logits [B, V] after them."""
        length = len(prompts[0])
        group = max(_BATCH_TOKENS // length, 1)
        found = []
        for first in range(0, len(prompts), group):
            entries = [
                (token, position, row, position == length - 1)
                for row, prompt in enumerate(prompts[first : first + group], first)
                for position, token in enumerate(prompt)
            ]
            found.append(self._decode(entries).copy())
        return numpy.concatenate(found)

    def _decode(self, entries: list[tuple[int, int, int, bool]]) -> numpy.ndarray:
        """Runs entries of (token, position, sequence, logits are needed); returns a view of the logits."""
        batch = self._batch
        batch.n_tokens = len(entries)
        for i, (token, position, sequence, is_wanted) in enumerate(entries):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, is_wanted
        code = self._llama.llama_decode(self._context, batch)
        if code:
            raise RuntimeError(f"llama_decode returned {code} for {len(entries)} tokens")
        count = sum(is_wanted for *_, is_wanted in entries)
        logits = self._llama.llama_get_logits(self._context)
        return numpy.ctypeslib.as_array(logits, shape=(count, self._vocab_size))


def _gguf(task: Task) -> Path:
    """Returns the GGUF file, and makes it if the folder does not hold it yet."""

    def path(form: str) -> Path:
        return Path(task.folder) / f"{Path(task.model).stem}-{form.replace(' ', '-')}.gguf"

    if path(task.form).is_file():
        return path(task.form)
    written = task.form if task.form in FLOAT_FORMS else "F32"
    if not path(written).is_file():
        from benchmarks.gguf_file import write

        write(Path(task.model), Path(task.vocabulary), path(written), written)
    if task.form not in FLOAT_FORMS:
        _quantize(path(written), path(task.form), *task.form.split(" ", 1))
    return path(task.form)


def _quantize(source: Path, target: Path, name: str, *words: str) -> None:
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    params.pure = words == ("pure",)
    unfinished = target.with_suffix(".unfinished")
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(unfinished).encode(), ctypes.byref(params))
    if code:
        raise RuntimeError(f"llama.cpp could not quantize {source.name} to {name}; its error is above")
    unfinished.rename(target)


if __name__ == "__main__":
    serve(Llama)
