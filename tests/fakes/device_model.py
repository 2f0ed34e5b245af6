"""The fake model on the fake CUDA device, with Triton's kernels for sampling."""

import torch
from fakes.cuda import DEVICE
from fakes.model import HashModel

from rwkv_batch.engine.sampler import Sampler
from rwkv_batch.models.blocks import TAKE_ROWS
from rwkv_batch.models.placement import Placement
from rwkv_batch.models.scoring import SCORE
from rwkv_batch.ops import resolve


class HashModelOnDevice(HashModel):
    """`HashModel` on the fake CUDA device."""

    device = DEVICE
    placement = Placement(DEVICE, torch.float32, None)
    ops = resolve((*Sampler.OPS, SCORE, TAKE_ROWS), "triton", torch.device("cpu"), torch.float32, {})
