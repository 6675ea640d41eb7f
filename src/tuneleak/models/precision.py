"""Where bfloat16 is worth its rounding."""

import torch


def bfloat16_is_fast(device):
    """Whether the device (torch.device) has units for bfloat16. Processors without AVX-512 may take a hundred times as long as in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
