#!/usr/bin/env python3
"""Times a VoCo training step (forward, backward, AdamW-amsgrad) in PyTorch + MONAI: what `vocoe bench step` is compared with.

    pip install torch==2.11.0 monai==1.3.0 einops numpy
    benches/peers/torch_step.py --device cpu --threads 2 --volumes 1 --crops 0 --bases 2
    benches/peers/torch_step.py --device cuda --volumes 2 --crops 2 --bases 9 --precision bf16 --channels-last

Prints one JSON object: seconds of a step (the median, and the fastest), crops per second, peak memory, versions. `bf16` and
`fp16` run under autocast, as the official recipe does. With no random crops the losses are left out, and what remains is the
encoder and the projector on `--bases` crops.
"""
import argparse
import inspect
import json
import resource
import time

import torch
import torch.nn.functional as F
from monai.networks.nets.swin_unetr import SwinUNETR
from torch import nn

WIDTH = 1024
MOMENTUM = 0.9
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def projector(inputs):
    layers = []
    for width in (inputs, WIDTH):
        layers += [nn.Linear(width, WIDTH), nn.BatchNorm1d(WIDTH, affine=False, track_running_stats=False), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, WIDTH))


class VoCo(nn.Module):
    """The encoder half of SwinUNETR, and a student's and a teacher's projector."""

    def __init__(self, feature_size, recompute):
        super().__init__()
        settings = dict(in_channels=1, out_channels=2, feature_size=feature_size, use_v2=True, use_checkpoint=recompute)
        if "img_size" in inspect.signature(SwinUNETR).parameters:  # until MONAI 1.4
            settings["img_size"] = (64, 64, 64)
        network = SwinUNETR(**settings)
        self.swin = network.swinViT
        self.encoders = nn.ModuleList([getattr(network, f"encoder{i}") for i in (1, 2, 3, 4, 10)])
        self.student, self.teacher = projector(24 * feature_size), projector(24 * feature_size)

    def embed(self, x):
        stages = self.swin(x)
        maps = [encode(y) for encode, y in zip(self.encoders, [x, *stages[:3], stages[4]])]
        return torch.cat([y.mean((2, 3, 4)) for y in maps], 1)

    def forward(self, x, labels):
        embedding = self.embed(x)
        student = self.student(embedding)
        with torch.no_grad():
            for ours, theirs in zip(self.student.parameters(), self.teacher.parameters()):
                theirs.mul_(MOMENTUM).add_(ours, alpha=1 - MOMENTUM)
            teacher = self.teacher(embedding)
        return losses(student.float(), teacher.float(), labels) if labels.numel() else student.float().square().mean()


def losses(student, teacher, labels):
    """Position prediction within and across volumes, and bases kept apart; the mean over volumes."""
    volumes, crops, bases = labels.shape
    (xs, bs), (xt, bt) = (split(p, volumes, crops, bases) for p in (student, teacher))
    total = 0
    for i in range(volumes):
        j = (i + 1) % volumes
        apart = cosine(bs[i], bs[i].detach()).square().triu(1).sum() / (bases * (bases - 1) / 2)
        total = total + entropy(labels[i], cosine(xs[i], bt[i])) + apart
        total = total + entropy(cosine(xt[i], bt[j]).detach(), cosine(xs[i], bs[j]))
    return total / volumes


def split(projections, volumes, crops, bases):
    """All crops come first, then all bases."""
    n = volumes * crops
    return projections[:n].view(volumes, crops, -1), projections[n:].view(volumes, bases, -1)


def cosine(a, b):
    return F.relu(F.cosine_similarity(a[:, None], b[None], dim=2))


def entropy(target, prediction):
    outside = (target == 0).float()
    near = -(target * torch.log(1 - (target - prediction).abs() + 1e-6)).sum() / (target.sum() + 1e-6)
    return near - (outside * torch.log(1 - prediction + 1e-6)).sum() / (outside.sum() + 1e-6)


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", default="cpu")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--feature-size", type=int, default=48)
    p.add_argument("--volumes", type=int, default=2)
    p.add_argument("--crops", type=int, default=2, help="random crops of a volume")
    p.add_argument("--bases", type=int, default=9, help="base crops of a volume")
    p.add_argument("--precision", default="f32", choices=["f32", "tf32", *AUTOCAST])
    p.add_argument("--channels-last", action="store_true")
    p.add_argument("--compile", action="store_true")
    p.add_argument("--recompute", action="store_true")
    p.add_argument("--steps", type=int, default=5)
    return p.parse_args()


class Training:
    def __init__(self, a):
        self.a, self.cuda = a, a.device.startswith("cuda")
        torch.manual_seed(0)
        torch.set_num_threads(a.threads)
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = a.precision == "tf32"
        layout = torch.channels_last_3d if a.channels_last else torch.contiguous_format
        model = VoCo(a.feature_size, a.recompute).to(a.device, memory_format=layout)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, amsgrad=True, fused=self.cuda)
        self.model = torch.compile(model) if a.compile else model
        crops = a.volumes * (a.crops + a.bases)
        self.x = torch.rand(crops, 1, 64, 64, 64, device=a.device).contiguous(memory_format=layout)
        overlaps = torch.rand(a.volumes, a.crops, a.bases, device=a.device)
        overlaps = torch.where(overlaps > 0.6, overlaps, 0.0)
        self.labels = overlaps / overlaps.sum(2, keepdim=True).clamp_min(1e-6)
        self.scaler = torch.amp.GradScaler(enabled=a.precision == "fp16")

    def step(self):
        low = AUTOCAST.get(self.a.precision)
        with torch.autocast(self.a.device.split(":")[0], dtype=low, enabled=low is not None):
            loss = self.model(self.x, self.labels)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def seconds(self):
        started = time.perf_counter()
        self.step()
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def peak(self):
        if self.cuda:
            return torch.cuda.max_memory_reserved()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main():
    a = arguments()
    training = Training(a)
    for _ in range(3 if training.cuda else 1):
        training.seconds()
    times = sorted(training.seconds() for _ in range(a.steps))
    median = times[len(times) // 2]
    crops = len(training.x)
    measured = dict(
        seconds=median,
        fastest=times[0],
        crops_per_s=crops / median,
        peak_memory_gb=training.peak() / 1e9,
        torch=torch.__version__,
        gpu=torch.cuda.get_device_name() if training.cuda else None,
    )
    print(json.dumps({**vars(a), **measured}))


if __name__ == "__main__":
    main()
