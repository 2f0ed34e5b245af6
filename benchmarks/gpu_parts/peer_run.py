"""The process of one peer: `python -m benchmarks.gpu_parts.peer_run TASK`, in JSON. Writes the file `out`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

Task = dict[str, Any]
Step = Callable[[], Any]
ROUNDS = 3
ROUND_SECONDS = 1.0


class Peer:
    """Measures the tokens/s of one engine. Subclasses define `decoder` and `prefiller`, which make timed functions."""

    what: str
    """How a decode step chooses tokens."""
    batches: tuple[int, ...] | None = None
    """Batch sizes that the engine supports; None for all."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.device = torch.device(task["device"])
        self.path = Path(task["model"])
        self.vocab_size: int = task["sizes"]["V"]

    def decoder(self, B: int) -> Step:
        """Makes a function that runs one decode step of B rows."""
        raise NotImplementedError

    def prefiller(self, num_rows: int, length: int) -> Step:
        """Makes a function that reads prompts into fresh rows."""
        raise NotImplementedError

    def tokens(self, *shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randint(1, self.vocab_size, shape, generator=generator).to(self.device)

    def decode_rate(self, B: int) -> float:
        """Returns the tokens/s of B rows that decode."""
        return B / self.seconds(self.decoder(B), self.task["steps"])

    def prefill_rate(self, num_rows: int, length: int) -> float:
        """Returns prompt tokens/s."""
        return num_rows * length / self.seconds(self.prefiller(num_rows, length), 1)

    def measure(self, save: Callable[[dict[str, Any]], None]) -> None:
        """Measures tokens/s by batch size and by shape of the prompts, or records an error; saves after each."""
        found: dict[str, Any] = {"what": self.what, "decode": {}, "prefill": {}}
        for B in self.task["batches"]:
            if self.batches is None or B in self.batches:
                found["decode"][str(B)] = _attempt(self.decode_rate, B)
                save(found)
        for n, length in self.task["prompts"]:
            if self.batches is None or n in self.batches:
                found["prefill"][f"{n} x {length}"] = _attempt(self.prefill_rate, n, length)
                save(found)

    def seconds(self, step: Step, count: int) -> float:
        """Returns the seconds of a step: the median of rounds of up to `count` steps, after warm-up steps."""
        step()
        first = self._time(step, 1)
        count = min(count, max(int(ROUND_SECONDS / first), 1))
        self._time(step, min(count, 3))
        return median(self._time(step, count) for _ in range(ROUNDS))

    def _time(self, step: Step, count: int) -> float:
        self.wait()
        start = perf_counter()
        for _ in range(count):
            step()
        self.wait()
        return (perf_counter() - start) / count

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _attempt(measure: Callable[..., float], *arguments: int) -> float | str:
    from .record import is_fatal, reason

    try:
        return measure(*arguments)
    except Exception as error:  # other batch sizes may work
        if is_fatal(error):
            raise
        torch.cuda.empty_cache()
        return reason(error)


class RwkvBatch(Peer):
    """The contender rwkv_batch."""

    what = "sampler (top-p), scheduler"
    state = "float32"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        from rwkv_batch.models.files.checkpoint import open_checkpoint

        from .engines import BACKEND, load

        context: Any = SimpleNamespace(device=self.device)
        backend = BACKEND if self.device.type == "cuda" else "reference"
        self.model = load(context, open_checkpoint(self.path), state_dtype=self.state, backend=backend)

    def decode_rate(self, B: int) -> float:
        """Returns the rate as the part `decode` measures it."""
        from .engines import decode, serve

        runs = [decode(serve(self.model, B), self.task["steps"], 0) for _ in range(2)]
        return median(run["tokens_per_second"] for run in runs)

    def prefiller(self, num_rows: int, length: int) -> Step:
        from rwkv_batch.engine.source import Pulled

        from .engines import random_prompts, requests, serve

        engine = serve(self.model, num_rows, num_rows * length)
        made = requests(random_prompts(self.model, [length] * num_rows), 1)
        return lambda: list(engine.generate(Pulled(made)))


class RwkvBatchHalf(RwkvBatch):
    state = "float16"


class RwkvPackage(Peer):
    """The `rwkv` package: one sequence, its own kernels, TorchScript."""

    what = "argmax"
    batches = (1,)

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        is_cuda = self.device.type == "cuda"
        os.environ |= {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "1", "RWKV_CUDA_ON": "1" if is_cuda else "0"}
        from rwkv.model import RWKV

        strategy = "cuda fp16" if is_cuda else "cpu fp32"
        self.model = RWKV(model=str(self.path.with_suffix("")), strategy=strategy)

    def decoder(self, B: int) -> Step:
        found = list(self.model.forward([1], None))

        def step() -> None:
            found[:] = self.model.forward([int(found[0].argmax())], found[1])

        return step

    def prefiller(self, num_rows: int, length: int) -> Step:
        tokens = self.tokens(length).tolist()
        return lambda: int(self.model.forward(tokens, None)[0].argmax())


class Fla(Peer):
    """flash-linear-attention's RWKV-7, as a Hugging Face model."""

    what = "argmax"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        from fla.models import RWKV7Config, RWKV7ForCausalLM

        sizes, ranks = task["sizes"], task["sizes"]["ranks"]
        config = RWKV7Config(
            hidden_size=sizes["C"],
            num_hidden_layers=sizes["L"],
            intermediate_size=sizes["F"],
            vocab_size=sizes["V"],
            head_dim=64,
            decay_low_rank_dim=ranks["w"],
            a_low_rank_dim=ranks["a"],
            v_low_rank_dim=ranks["v"],
            gate_low_rank_dim=ranks["g"],
        )
        with patch("torch.nn.init.orthogonal_", lambda x, gain=1: x), torch.device(self.device):
            self.model = RWKV7ForCausalLM(config).to(torch.bfloat16).eval()
        self._copy_weights()

    def _copy_weights(self) -> None:
        from rwkv_batch.models.rwkv7 import Rwkv7

        stored = torch.load(self.path, map_location="cpu", mmap=True)
        own = self.model.state_dict()
        for name, parameter in own.items():
            ((canonical, _),) = Rwkv7.hugging_face[0].targets(name)
            value = stored[canonical]
            is_transposed = parameter.dim() == 2 and value.shape != parameter.shape
            parameter.copy_((value.t() if is_transposed else value).reshape(parameter.shape))

    def decoder(self, B: int) -> Step:
        found: dict[str, Any] = {"ids": self.tokens(B, 1), "cache": None}

        @torch.inference_mode()
        def step() -> None:
            out = self.model(found["ids"], past_key_values=found["cache"], use_cache=True)
            found["cache"], found["ids"] = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)

        return step

    def prefiller(self, num_rows: int, length: int) -> Step:
        tokens = self.tokens(num_rows, length)

        @torch.inference_mode()
        def run() -> None:
            self.model(tokens, use_cache=True, logits_to_keep=1).logits.argmax(-1)

        return run


class RwkvServe(Peer):
    """rwkvserve with its scheduler, fed with token ids."""

    what = "sampler (top-p), scheduler"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        sizes, ranks = task["sizes"], task["sizes"]["ranks"]
        config = {
            "model_type": "rwkv7",
            "n_layer": sizes["L"],
            "n_embd": sizes["C"],
            "vocab_size": sizes["V"],
            "dim_ffn": sizes["F"],
            "dim_att_lora": ranks["w"],
            "dim_gate_lora": ranks["g"],
            "dim_mv_lora": ranks["v"],
        }
        folder = self.path.parent / "rwkvserve"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        if not (folder / "model.pth").exists():
            (folder / "model.pth").symlink_to(self.path)
        from rwkvserve.models import AutoModel

        dtype = "bf16" if self.device.type == "cuda" else "fp32"
        self.model = AutoModel.from_pretrained(str(folder), device=self.device.type, dtype=dtype).eval()

    def _scheduler(self, B: int, prompts: list[list[int]], max_tokens: int) -> Any:
        from rwkvserve.inference.scheduler_core import (
            SchedulerCore,
            SequenceState,
        )

        scheduler = SchedulerCore(self.model, SimpleNamespace(), max_batch_size=B, prefill_chunk_size=1024)
        scheduler.add_sequences(
            [
                SequenceState(seq_id=i, prompt_tokens=prompt, max_new_tokens=max_tokens, top_p=0.85)
                for i, prompt in enumerate(prompts)
            ]
        )
        return scheduler

    def decoder(self, B: int) -> Step:
        scheduler = self._scheduler(B, self.tokens(B, 1).tolist(), 1 << 20)
        while len(scheduler.running_seqs) < B:
            scheduler.step_sync()
        return lambda: scheduler.step_sync()

    def prefiller(self, num_rows: int, length: int) -> Step:
        prompts = self.tokens(num_rows, length).tolist()

        def run() -> None:
            scheduler = self._scheduler(num_rows, prompts, 1)
            while scheduler.has_pending_work():
                scheduler.step_sync()

        return run


class QuantNv(Peer):
    """The kernels of Albatross from rwkv-quant-nv: a forward pass alone, recorded as a CUDA graph."""

    what = "nothing: a forward pass"
    wkv = "fp16"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        import rwkv7_fast_v3a as fast

        fast.MODEL_PATH, fast.WKV_MODE, fast.EMB_DEVICE = str(self.path), self.wkv, "gpu"
        fast.load_extensions(self.wkv)
        self.fast, self.model = fast, fast.RWKV7()

    def decoder(self, B: int) -> Step:
        return self._recorded(B, 1)

    def prefiller(self, num_rows: int, length: int) -> Step:
        return self._recorded(num_rows, length)

    def _recorded(self, num_rows: int, length: int) -> Step:
        tokens, model = self.tokens(num_rows, length), self.model
        state = model.zero_state(num_rows)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                model.forward(tokens, state)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            model.forward(tokens, state)
        return graph.replay


class QuantNvFloat32(QuantNv):
    wkv = "fp32io16"


PEERS: dict[str, type[Peer]] = {
    "rwkv_batch": RwkvBatch,
    "rwkv_batch float16 state": RwkvBatchHalf,
    "rwkv": RwkvPackage,
    "flash-linear-attention": Fla,
    "rwkvserve": RwkvServe,
    "rwkv-quant-nv": QuantNv,
    "rwkv-quant-nv float32 state": QuantNvFloat32,
}


def main() -> None:
    task: Task = json.loads(sys.argv[1])
    if task["device"] != "cuda":
        torch.set_num_threads(1)
    out = Path(task["out"])

    def save(found: dict[str, Any]) -> None:
        unfinished = out.with_suffix(".tmp")
        unfinished.write_text(json.dumps(found))
        os.replace(unfinished, out)

    PEERS[task["peer"]](task).measure(save)


if __name__ == "__main__":
    main()
