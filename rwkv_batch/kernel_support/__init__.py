"""Helpers of all kernel packages: checks of tensors, reasons why kernels cannot serve, and files of compiled kernels.

The kernel packages import these modules and nothing else of `rwkv_batch`. These modules import torch, and neither
Triton nor anything else of `rwkv_batch`.
"""
