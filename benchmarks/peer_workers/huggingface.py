"""Worker for the package `rwkv7-hf` under transformers' `generate`. The form is a dtype."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from .protocol import Peer, Task, log_softmax, serve

_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16"}


class HuggingFace(Peer):
    what = "takes the most likely token"

    def __init__(self, task: Task) -> None:
        torch.set_num_threads(task.threads)
        os.environ["HF_HUB_OFFLINE"] = "1"
        from rwkv7_hf import RWKV7ForCausalLM

        self.version = f"{version('rwkv7-hf')}, transformers {version('transformers')}"
        dtype = getattr(torch, task.form)
        self._model = RWKV7ForCausalLM.from_pretrained(_converted(task), dtype=dtype).eval()

    @torch.inference_mode()
    def complete(self, prompts: list[list[int]], num_tokens: int) -> None:
        ids = torch.tensor(prompts)
        made = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        if made.shape[1] != ids.shape[1] + num_tokens:
            raise RuntimeError(f"made {made.shape[1] - ids.shape[1]} tokens a row, expected {num_tokens}")

    @torch.inference_mode()
    def logprobs(self, prompt: list[int], candidates: list[int]) -> list[float]:
        return log_softmax(self._model(torch.tensor([prompt])).logits[0, -1].float().tolist(), candidates)


def _converted(task: Task) -> Path:
    folder = Path(task.folder) / f"{Path(task.model).stem}-hf-{task.form}"
    if not (folder / "config.json").is_file():
        program = str(Path(sys.executable).with_name("rwkv7-hf"))
        command = [program, "convert", "--input", task.model, "--output", str(folder)]
        options = ["--vocab-file", task.vocabulary, "--precision", _PRECISIONS[task.form]]
        subprocess.run([*command, *options], check=True)
    return folder


if __name__ == "__main__":
    serve(HuggingFace)
