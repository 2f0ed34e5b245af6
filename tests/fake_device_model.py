"""The fake model on the fake CUDA device, sampled by Triton's kernels."""

import torch
from fake_cuda import DEVICE
from fake_model import HashModel

from rwkv_batch.engine.sampler import Sampler
from rwkv_batch.models.placement import Placement
from rwkv_batch.models.scoring import SCORE
from rwkv_batch.ops import resolve


class HashModelOnDevice(HashModel):
    device = DEVICE
    placement = Placement(DEVICE, torch.float32, None)
    ops = resolve((*Sampler.OPS, SCORE), "triton", torch.device("cpu"), torch.float32, {})
