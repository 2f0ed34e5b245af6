"""Worker for `rwkvserve` on a CPU: its own continuous batching and sampler. The form is a dtype."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .protocol import Peer, Task, log_softmax, serve

VOCABULARY = "rwkv_vocab_v20230424.txt"


class Rwkvserve(Peer):
    what = "samples, temperature 1"

    def __init__(self, task: Task) -> None:
        torch.set_num_threads(task.threads)
        from rwkvserve import LLM, SamplingParams

        self.version = version("rwkvserve")
        self._params = SamplingParams
        self._llm = LLM(
            model=str(_model_folder(task)),
            device="cpu",
            dtype=task.form,
            max_batch_size=task.batch_size,
            max_batch_tokens=task.batch_size * task.row_tokens,
        )
        self._llm.eos_token_id = None
        # rwkvserve takes prompts as text; this tokenizer reads a text as a list of ids.
        self._llm.tokenizer.encode = lambda text: json.loads(text)

    def complete(self, prompts: list[list[int]], num_tokens: int) -> None:
        params = self._params(max_tokens=num_tokens, temperature=1.0, top_p=1.0, top_k=0)
        outputs = self._llm.generate([json.dumps(prompt) for prompt in prompts], params, use_tqdm=False)
        counts = {len(output.outputs[0].token_ids) for output in outputs}
        if counts != {num_tokens}:
            raise RuntimeError(f"made {sorted(counts)} tokens a row, expected {num_tokens}")

    @torch.no_grad()
    def logprobs(self, prompt: list[int], candidates: list[int]) -> list[float]:
        logits, *_ = self._llm.model.forward_with_state(torch.tensor([prompt]))
        return log_softmax(logits.float().reshape(-1, logits.shape[-1])[-1].tolist(), candidates)


def _model_folder(task: Task) -> Path:
    """Makes the folder that rwkvserve loads: sizes under its own names, checkpoint, vocabulary."""
    folder = Path(task.folder) / f"{Path(task.model).stem}-rwkvserve"
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint: dict[str, Any] = torch.load(task.model, map_location="cpu", weights_only=True, mmap=True)
    V, C = checkpoint["emb.weight"].shape
    sizes = {
        "model_type": "rwkv7",
        "n_layer": 1 + max(int(name.split(".")[1]) for name in checkpoint if name.startswith("blocks.")),
        "n_embd": C,
        "vocab_size": V,
        "dim_ffn": checkpoint["blocks.0.ffn.key.weight"].shape[0],
        "dim_att_lora": checkpoint["blocks.0.att.w1"].shape[1],
        "dim_mv_lora": checkpoint["blocks.1.att.v1"].shape[1],
        "dim_gate_lora": checkpoint["blocks.0.att.g1"].shape[1],
        "head_size_a": checkpoint["blocks.0.att.r_k"].shape[1],
        "ctx_len": 4096,
    }
    (folder / "config.json").write_text(json.dumps(sizes))
    tokenizer = {"tokenizer_class": "RWKV_TOKENIZER", "vocab_file": VOCABULARY}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    for name, source in (("model.pth", task.model), (VOCABULARY, task.vocabulary)):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(Path(source).resolve())
    return folder


if __name__ == "__main__":
    serve(Rwkvserve)
