"""What PyTorch's autocast loses in the encoder: the bounds of tests/cuda/precision.rs. Needs what make_cases.py needs.

    venv/bin/python autocast.py

Prints ‖error‖ / ‖value‖ of the embedding and of all gradients together, and the median over parameters, against float64, for the
smallest network with hash-filled weights on two crops of 64 x 32 x 32 voxels, u(5, i).
"""
from contextlib import nullcontext

import make_cases as cases
import torch
from torch import nn

torch.set_default_dtype(torch.float64)
full = cases.swin_unetr_network(12, 3, "monai-1.3")
net = nn.ModuleDict({k: getattr(full, k) for k in ("swinViT", "encoder1", "encoder2", "encoder3", "encoder4", "encoder10")})
crops = torch.from_numpy(cases.uniform(5, 2 << 16)).reshape(2, 1, 64, 32, 32)
cotangent = cases.Draw("cot")(2, 24 * 12)


def run(dtype, low=None):
    net.to(dtype).zero_grad()
    with torch.autocast("cpu", dtype=low) if low else nullcontext():
        y = torch.cat([cases.embedding(net, crop[None]) for crop in crops.to(dtype)])
    y.backward(cotangent.to(y.dtype))
    return [y.detach().double()] + [p.grad.double() for p in net.parameters() if p.grad is not None]


def off(ours, exact):
    return sum((a - b).square().sum() for a, b in zip(ours, exact)).sqrt() / sum(b.square().sum() for b in exact).sqrt()


exact = run(torch.float64)
for low in (None, torch.bfloat16, torch.float16):
    ours = run(torch.float32, low)
    each = sorted(off([a], [b]).item() for a, b in zip(ours[1:], exact[1:]))
    print(f"{low or 'float32'}: embedding {off(ours[:1], exact[:1]):.2e}, gradients {off(ours[1:], exact[1:]):.2e}, "
          f"median {each[len(each) // 2]:.2e}")
