"""Writes the reference cases of this folder with PyTorch and MONAI. README.md says what a case holds.

    python3 -m venv venv && venv/bin/pip install torch==2.11.0 monai==1.3.0 safetensors numpy einops
    venv/bin/python make_cases.py [--out FOLDER] [--only TEXT]

Everything is computed in float64 on numbers that float32 holds exactly, and stored as float32. Nothing is drawn from a
library's generator: each number is a hash of (seed, index), so the same cases come out of any version.
"""
import argparse
import json
import math
import os
import zlib

import numpy as np
import torch
import torch.nn.functional as F
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.networks.nets import swin_unetr as monai_swin
from safetensors.torch import save_file
from torch import nn
from torch.utils.checkpoint import checkpoint

SAMPLES = 1024  # larger tensors of a whole network are stored as a norm and about this many elements


# ------------------------------------------------------------------------------------------------------- numbers
def uniform(seed, count):
    """u(seed, 0..count) in [0, 1): a splitmix64 hash of the index."""
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) / 2.0**53


def f32(values):
    """Rounded to float32, in float64."""
    return torch.as_tensor(values).float().double()


def made(shape, seed, form):
    """A tensor that the reader makes itself, and the attribute that tells it how."""
    u = uniform(seed, math.prod(shape)).reshape(shape)
    value = {"unit": lambda: f32(u), "signed": lambda: f32(2 * u - 1), "blocks": lambda: torch.from_numpy(blocks(u))}
    return value[form](), dict(shape=list(shape), seed=seed, form=form)


def blocks(u):
    """Bytes; crop i is a mosaic of cubes of i % 8 + 1 voxels, so that crops differ in texture and not by noise alone."""
    u = np.floor(256 * u)
    for i, crop in enumerate(u):
        x, y, z = (np.arange(n) // (i % 8 + 1) for n in crop.shape[1:])
        crop[:] = crop[:, x][:, :, y][:, :, :, z]
    return u


def hash_fill(name, shape):
    """The parameter of this name."""
    r = 2 * uniform(zlib.crc32(name.encode()), math.prod(shape)) - 1
    if name.endswith("relative_position_bias_table"):
        r = 0.5 * r
    elif len(shape) > 1:
        r = r * math.sqrt(3 / math.prod(shape[1:]))
    elif ".norm" in name and name.endswith("weight"):
        r = 1 + 0.1 * r
    else:
        r = 0.1 * r
    return f32(r).reshape(shape)


class Draw:
    """Inputs of one case: zero mean, unit variance, times a scale."""

    def __init__(self, case):
        self.seed = zlib.crc32(case.encode()) << 8

    def __call__(self, *shape, scale=1.0, shift=0.0):
        return f32((2 * self.uniform(*shape) - 1) * math.sqrt(3) * scale + shift)

    def uniform(self, *shape):
        self.seed += 1
        return torch.from_numpy(uniform(self.seed, math.prod(shape))).reshape(shape)

    def integers(self, end, *shape):
        return (self.uniform(*shape) * end).long()


# ----------------------------------------------------------------------------------------------------- operations
def save(name, kind, attrs, tensors):
    kinds = {torch.int64: torch.int32, torch.float64: torch.float32}
    tensors = {k: v.detach().to(kinds.get(v.dtype, v.dtype)).contiguous().clone() for k, v in tensors.items()}
    path = os.path.join(OUT, name + ".safetensors")
    save_file(tensors, path, metadata=dict(kind=kind, attrs=json.dumps(attrs)))
    print(f"{name:36s} {os.path.getsize(path):9d} bytes", flush=True)


def differentiated(name, kind, attrs, inputs, f):
    """out.y = f(inputs), and the gradient of every float input from a cotangent."""
    leaves = {k: v.clone().requires_grad_() if v.is_floating_point() else v for k, v in inputs.items()}
    y = f(**leaves)
    cot = Draw(name + ".cot")(*y.shape) if y.ndim else torch.ones_like(y)
    y.backward(cot)
    tensors = {f"in.{k}": v for k, v in inputs.items()} | {"out.y": y, "cot.y": cot}
    save(name, kind, attrs, tensors | {f"grad.{k}": v.grad for k, v in leaves.items() if v.is_floating_point()})


def conv3d(name, x, co, kernel, stride, padding, bias):
    d = Draw(name)
    inputs = dict(x=d(*x), weight=d(co, x[1], *kernel, scale=(x[1] * math.prod(kernel)) ** -0.5))
    inputs |= dict(bias=d(co)) if bias else {}
    differentiated(name, "conv3d", dict(stride=stride, padding=padding), inputs,
                   lambda x, weight, bias=None: F.conv3d(x, weight, bias, stride, padding))


def conv_transpose3d(name, x, co, kernel, stride, bias):
    d = Draw(name)
    inputs = dict(x=d(*x), weight=d(x[1], co, *kernel, scale=x[1] ** -0.5))
    inputs |= dict(bias=d(co)) if bias else {}
    differentiated(name, "conv_transpose3d", dict(stride=stride), inputs,
                   lambda x, weight, bias=None: F.conv_transpose3d(x, weight, bias, stride))


def layer_norm(name, shape, affine):
    d = Draw(name)
    inputs = dict(x=d(*shape, scale=3, shift=1)) | (dict(weight=d(shape[-1]), bias=d(shape[-1])) if affine else {})
    differentiated(name, "layer_norm", dict(eps=1e-5), inputs,
                   lambda x, weight=None, bias=None: F.layer_norm(x, x.shape[-1:], weight, bias, 1e-5))


def unary(name, shape, f, scale=1.0, kind=None, **attrs):
    differentiated(name, kind or name, attrs, dict(x=Draw(name)(*shape, scale=scale)), lambda x: f(x))


def resize(name, shape, size, align):
    unary(name, shape, lambda x: F.interpolate(x, size=size, mode="trilinear", align_corners=align),
          kind="resize_trilinear", size=size, align_corners=align)


def info_nce(name, rows, dim, temperature):
    d = Draw(name)
    differentiated(name, "info_nce", dict(temperature=temperature), dict(q=d(rows, dim), k=d(rows, dim)),
                   lambda q, k: F.cross_entropy(F.normalize(q) @ F.normalize(k).T / temperature, torch.arange(rows)))


def dice_ce(name, n, classes, grid):
    d = Draw(name)
    loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    inputs = dict(logits=d(n, classes, *grid, scale=2), label=d.integers(classes, n, 1, *grid))
    differentiated(name, "dice_ce", {}, inputs, lambda logits, label: loss(logits, label))


def window_attention(name, batch, grid, heads, head, shift):
    d, c, window = Draw(name), heads * head, (7, 7, 7)
    shapes = {"qkv.weight": (3 * c, c), "qkv.bias": (3 * c,), "proj.weight": (c, c), "proj.bias": (c,),
              "relative_position_bias_table": (13**3, heads)}
    inputs = {"x": d(batch, *grid, c)} | {k: d(*s, scale=0.2) for k, s in shapes.items()}
    effective = monai_swin.get_window_size(grid, window, shift)
    padded = [math.ceil(n / w) * w for n, w in zip(grid, effective[0])]
    mask = monai_swin.compute_mask(padded, *effective, "cpu").double()

    def attend(x, **parameters):
        block = monai_swin.SwinTransformerBlock(c, heads, window, shift)
        block.norm1 = nn.Identity()
        return torch.func.functional_call(
            Part1(block), {f"block.attn.{k}": v for k, v in parameters.items()}, (x, mask))

    differentiated(name, "window_attention", dict(heads=heads, window=window, shift=shift), inputs, attend)


class Part1(nn.Module):
    """The attention half of a Swin block: pad, roll, partition, attend, undo."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x, mask):
        return self.block.forward_part1(x, mask)


def sliding_window(name, x, roi, overlap, mode):
    d = Draw(name)
    x, weight = d(*x), d(2, x[1], 3, 3, 3, scale=0.3)
    y = sliding_window_inference(x, roi, 1, lambda crop: F.conv3d(crop, weight, padding=1), overlap=overlap, mode=mode)
    save(name, "sliding_window", dict(roi=roi, overlap=overlap, mode=mode), {"in.x": x, "in.weight": weight, "out.y": y})


def adamw(name, shape, steps, lr, decay, warmup):
    d = Draw(name)
    start, grads = d(*shape), f32(torch.stack([d(*shape) * (2 - 1.9 * i / steps) for i in range(steps)]))
    p = nn.Parameter(start.clone())
    optimiser = torch.optim.AdamW([p], lr=lr, weight_decay=decay, amsgrad=True)
    after, rates = [], []
    for i in range(steps):
        cosine = max(0.0, 0.5 * (1 + math.cos(math.pi * (i - warmup) / (steps - warmup))))
        optimiser.param_groups[0]["lr"] = lr * (i / warmup if i < warmup else cosine)
        rates.append(optimiser.param_groups[0]["lr"])
        p.grad = grads[i].clone()
        optimiser.step()
        after.append(p.detach().clone())
    attrs = dict(lr=lr, weight_decay=decay, betas=[0.9, 0.999], eps=1e-8, amsgrad=True, warmup_steps=warmup, total_steps=steps)
    save(name, "adamw", attrs, {"in.param": start, "in.grads": grads, "out.params": torch.stack(after), "out.lrs": torch.tensor(rates)})


# ----------------------------------------------------------------------------------------------------- VoCo's loss
def position_labels(draw, volumes, crops, grid, roi=64):
    """Share of each random crop that lies in each base: [volumes, crops, grid²]."""
    start = draw.integers(roi * (grid - 1), volumes, crops, 2).double()
    base = torch.arange(grid) * roi
    overlap = (roi - (start[..., None] - base).abs()).clamp_min(0) / roi  # per axis
    return f32((overlap[:, :, 0, :, None] * overlap[:, :, 1, None, :]).flatten(2))


def cosines(a, b):
    return F.cosine_similarity(a[:, None], b[None], dim=-1)


def position_loss(label, logit):
    hit = -(label * torch.log(1 - (label - logit).abs() + 1e-6)).sum() / (label.sum() + 1e-6)
    apart = (label == 0).double()
    return hit - (apart * torch.log(1 - logit + 1e-6)).sum() / (apart.sum() + 1e-6)


def base_similarity(bases):
    """Mean of relu(cos)² over pairs; the later base of each pair is held fixed."""
    later = torch.ones(len(bases), len(bases)).triu(1).bool()
    return F.relu(cosines(bases, bases.detach()))[later].square().mean()


def voco_terms(student, teacher, labels):
    """intra, inter, reg. Rows: all random crops, then all bases, volume after volume."""
    volumes, crops, bases = labels.shape
    cut = lambda e: (e[:volumes * crops].unflatten(0, (volumes, crops)), e[volumes * crops:].unflatten(0, (volumes, bases)))
    (sc, sb), (tc, tb) = cut(student), cut(teacher.detach())
    terms = []
    for i in range(volumes):
        j = (i + 1) % volumes
        terms.append(torch.stack([
            position_loss(labels[i], F.relu(cosines(sc[i], tb[i]))),
            position_loss(F.relu(cosines(tc[i], tb[j])), F.relu(cosines(sc[i], sb[j]))),
            base_similarity(sb[i])]))
    return torch.stack(terms).mean(0)


def early_position_loss(label, logit, weight):
    hit = -(weight * torch.log(1 - (label - logit).abs() + 1e-6)).sum() / (weight.sum() + 1e-6)
    apart = (label == 0).double()
    return hit + (apart * logit.square()).sum() / (apart.sum() + 1e-6)


def early_terms(form, student, teacher, labels):
    """intra and reg of the losses before there was a term across volumes."""
    volumes, crops, bases = labels.shape
    cut = lambda e: (e[:volumes * crops].unflatten(0, (volumes, crops)), e[volumes * crops:].unflatten(0, (volumes, bases)))
    (sc, sb), (tc, tb) = cut(student), cut(teacher.detach())
    terms = []
    for y, sc, sb, tc, tb in zip(labels, sc, sb, tc, tb):
        logit = F.relu(cosines(sc, tb))
        if form == "cvpr3":
            logit = (logit + F.relu(cosines(tc, sb))) / 2
        weight = {"cvpr1": (y > 0).double(), "cvpr3": y}[form]
        terms.append(torch.stack([early_position_loss(y, logit, weight), base_similarity(sb)]))
    return torch.stack(terms).mean(0)


def losses(terms):
    return {f"out.{k}": v for k, v in zip(("intra", "inter", "reg", "loss"), [*terms, terms.sum()])}


def voco_loss(name, volumes, crops, grid, dim, form=None):
    d, bases = Draw(name), grid * grid
    rows = volumes * (crops + bases)
    labels, student = position_labels(d, volumes, crops, grid), d(rows, dim)
    teacher = f32(0.7 * student + d(rows, dim, scale=0.7))
    student.requires_grad_()
    attrs = dict(volumes=volumes, crops=crops, bases=bases, grid=grid, roi=64) | (dict(form=form) if form else {})
    if form:
        terms = early_terms(form, student, teacher, labels)
        out = {"out.intra": terms[0], "out.reg": terms[1], "out.loss": terms.sum()}
    else:
        terms = voco_terms(student, teacher, labels)
        out = losses(terms)
    terms.sum().backward()
    save(name, "voco_loss", attrs,
         {"in.student": student, "in.teacher": teacher, "in.labels": labels, "grad.student": student.grad} | out)


# -------------------------------------------------------------------------------------------------- whole networks
def swin_unetr_network(feature_size, out_channels, merging):
    downsample = {"monai-1.3": "merging", "standard": "mergingv2"}[merging]
    net = monai_swin.SwinUNETR((64, 64, 64), 1, out_channels, feature_size=feature_size, use_v2=True, downsample=downsample)
    return filled(net)


def filled(net, prefix=""):
    for name, p in net.named_parameters():
        p.data = hash_fill(prefix + name, p.shape)
    return net


def stored(tensors):
    """Small tensors whole; of large ones the norm and every ceil(numel / SAMPLES)-th element."""
    out = {}
    for name, t in tensors.items():
        prefix, rest = name.split(".", 1)
        if t.numel() <= SAMPLES:
            out[name] = t
        else:
            out[f"{prefix}norm.{rest}"] = t.norm()
            out[f"{prefix}sample.{rest}"] = t.flatten()[::math.ceil(t.numel() / SAMPLES)]
    return out


def in_float32(net, run):
    """What PyTorch itself gets in float32."""
    torch.set_default_dtype(torch.float32)
    got = run(net.float(), lambda t: t.float())
    torch.set_default_dtype(torch.float64)
    return {k: v.detach().double() for k, v in got.items()}


def network_case(name, kind, attrs, net, run, inputs):
    expected = {k: v.detach().clone() for k, v in stored(run(net, lambda t: t)).items()}
    got = stored(in_float32(net, run))
    error = {k: float((got[k] - v).norm() / v.norm().clamp_min(1e-30)) for k, v in expected.items()
             if not k.split(".")[0].endswith("norm")}  # a norm is off by no more than its tensor
    save(name, kind, attrs | dict(samples=SAMPLES, torch_float32_error=error), expected | inputs)


def gradients(net):
    return {f"grad.{k}": p.grad for k, p in net.named_parameters() if p.grad is not None}


def swin_unetr(name, feature_size, out_channels, merging):
    attrs = dict(feature_size=feature_size, in_channels=1, out_channels=out_channels, patch_merging=merging, weights="hash-fill")
    swin_unetr_case(name, swin_unetr_network(feature_size, out_channels, merging), attrs)


def swin_unetr_case(name, net, attrs):
    """Forward and backward of a network with the parameters it has."""
    x, how_x = made((1, attrs["in_channels"], 64, 64, 64), 7, "unit")
    cot, how_cot = made((1, attrs["out_channels"], 64, 64, 64), 8, "signed")

    def run(net, cast):
        for p, v in zip(net.parameters(), start):
            p.data, p.grad = cast(v).clone(), None
        leaf = cast(x).clone().requires_grad_()
        y = net(leaf)
        y.backward(cast(cot))
        return {"out.y": y, "grad.x": leaf.grad} | gradients(net)

    start = [p.detach().clone() for p in net.parameters()]
    network_case(name, "swin_unetr", attrs | dict(made={"in.x": how_x, "cot.y": how_cot}), net, run, {})


def embedding(net, x):
    """What the projectors see of a crop: the pooled maps of the encoder."""
    h = net.swinViT(x)
    maps = [net.encoder1(x), net.encoder2(h[0]), net.encoder3(h[1]), net.encoder4(h[2]), net.encoder10(h[4])]
    return torch.cat([m.mean((2, 3, 4)) for m in maps], 1)


def swin_unetr_forward(name, net, forward, attrs, parameters={}):
    """out.y = forward(net, x) and no gradients. `parameters` are stored in the case."""
    x, how_x = made((1, attrs["in_channels"], 64, 64, 64), 7, "unit")
    with torch.no_grad():
        y = forward(net, x)
    _, how_cot = made(tuple(y.shape), 8, "signed")
    tensors = {"out.y": y} | {f"param.{k}": v for k, v in parameters.items()}
    save(name, "swin_unetr", attrs | dict(made={"in.x": how_x, "cot.y": how_cot}), tensors)


def swin_unetr_embedding(name, feature_size):
    attrs = dict(feature_size=feature_size, in_channels=1, patch_merging="monai-1.3", weights="hash-fill")
    swin_unetr_forward(name, swin_unetr_network(feature_size, 3, "monai-1.3"), embedding, attrs)


class Projector(nn.Module):
    def __init__(self, width, hidden, out):
        super().__init__()
        norm = lambda: nn.BatchNorm1d(hidden, affine=False, track_running_stats=False)
        self.layer1 = nn.Sequential(nn.Linear(width, hidden), norm(), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Linear(hidden, hidden), norm(), nn.ReLU())
        self.layer3 = nn.Sequential(nn.Linear(hidden, out))

    def forward(self, e):
        return self.layer3(self.layer2(self.layer1(e)))


class VoCo(nn.Module):
    """Encoder, student projector and its moving average, the teacher."""

    def __init__(self, feature_size, hidden, out, momentum):
        super().__init__()
        full = swin_unetr_network(feature_size, 3, "monai-1.3")
        self.backbone = nn.ModuleDict({k: getattr(full, k) for k in ("swinViT", "encoder1", "encoder2", "encoder3", "encoder4", "encoder10")})
        self.student = filled(Projector(24 * feature_size, hidden, out), "student.")
        self.teacher = filled(Projector(24 * feature_size, hidden, out), "teacher.").requires_grad_(False)
        self.momentum = momentum

    def forward(self, crops, labels):
        # no norm of the backbone looks across crops: one at a time, and recomputed in backward, to save memory
        e = torch.cat([checkpoint(embedding, self.backbone, c[None], use_reentrant=False) for c in crops])
        with torch.no_grad():
            for t, s in zip(self.teacher.parameters(), self.student.parameters()):
                t.lerp_(s, 1 - self.momentum)
        return voco_terms(self.student(e), self.teacher(e), labels)


def voco_model(name, feature_size, hidden, out, volumes, crops, grid):
    bases = grid * grid
    images, how_images = made((volumes * crops, 1, 64, 64, 64), 21, "blocks")
    base_crops, how_bases = made((volumes * bases, 1, 64, 64, 64), 22, "blocks")
    labels = position_labels(Draw(name), volumes, crops, grid)
    attrs = dict(feature_size=feature_size, hidden=hidden, out=out, volumes=volumes, crops=crops, bases=bases, momentum=0.9,
                 feature_dropout=0.0, patch_merging="monai-1.3", weights="hash-fill",
                 made={"in.images": how_images, "in.bases": how_bases})
    return VoCo(feature_size, hidden, out, 0.9), torch.cat([images, base_crops]) / 255, labels, attrs


def voco_head(name, *sizes):
    net, inputs, labels, attrs = voco_model(name, *sizes)
    start = {k: p.detach().clone() for k, p in net.named_parameters()}

    def run(net, cast):
        for k, p in net.named_parameters():
            p.data, p.grad = cast(start[k]).clone(), None
        terms = net(cast(inputs), cast(labels))
        terms.sum().backward()
        return losses(terms) | gradients(net) | {f"after.{k}": p for k, p in net.named_parameters() if k.startswith("teacher.")}

    network_case(name, "voco_head", attrs, net, run, {"in.labels": labels})


def voco_trajectory(name, steps, lr, *sizes):
    net, inputs, labels, attrs = voco_model(name, *sizes)
    start = {k: p.detach().clone() for k, p in net.named_parameters()}

    def run(net, cast):
        for k, p in net.named_parameters():
            p.data = cast(start[k]).clone()
        optimiser = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=lr, weight_decay=0.01, amsgrad=True)
        curve = []
        for _ in range(steps):
            terms = net(cast(inputs), cast(labels))
            optimiser.zero_grad()
            terms.sum().backward()
            optimiser.step()
            curve.append(torch.cat([terms, terms.sum()[None]]).detach())
        return {"losses": torch.stack(curve)}

    exact = run(net, lambda t: t)["losses"]
    attrs |= dict(steps=steps, lr=lr, weight_decay=0.01, amsgrad=True)
    save(name, "voco_trajectory", attrs,
         {"in.labels": labels, "out.losses": exact, "float32.losses": in_float32(net, run)["losses"]})


def state_dict_list(name):
    """Names, types and shapes of SwinUNETR-B with 21 classes, as MONAI stores them."""
    net = monai_swin.SwinUNETR((64, 64, 64), 1, 21, feature_size=48, use_v2=True).float()
    short = {torch.float32: "f32", torch.int64: "i64"}
    lines = [f"{k} {short[v.dtype]} {'x'.join(map(str, v.shape))}" for k, v in net.state_dict().items()]
    with open(os.path.join(OUT, name + ".txt"), "w") as file:
        file.write("\n".join(lines) + "\n")


CASES = {
    "conv3d_k3": lambda n: conv3d(n, (1, 17, 5, 7, 6), 19, (3, 3, 3), (1, 1, 1), (1, 1, 1), False),
    "conv3d_k3_in1": lambda n: conv3d(n, (2, 1, 9, 8, 7), 12, (3, 3, 3), (1, 1, 1), (1, 1, 1), False),
    "conv3d_k1": lambda n: conv3d(n, (2, 24, 3, 5, 4), 40, (1, 1, 1), (1, 1, 1), (0, 0, 0), True),
    "conv3d_patch2": lambda n: conv3d(n, (2, 1, 8, 10, 12), 24, (2, 2, 2), (2, 2, 2), (0, 0, 0), True),
    "conv3d_k3_s2": lambda n: conv3d(n, (1, 8, 7, 8, 9), 11, (3, 3, 3), (2, 2, 2), (1, 1, 1), True),
    "conv3d_k133": lambda n: conv3d(n, (1, 5, 4, 9, 8), 7, (1, 3, 3), (1, 2, 2), (0, 1, 1), True),
    "conv_transpose3d_k2_s2": lambda n: conv_transpose3d(n, (2, 18, 3, 4, 5), 12, (2, 2, 2), (2, 2, 2), False),
    "conv_transpose3d_k122": lambda n: conv_transpose3d(n, (1, 10, 3, 4, 5), 9, (1, 2, 2), (1, 2, 2), True),
    "linear": lambda n: (lambda d: differentiated(n, "linear", {}, dict(
        x=d(3, 37, 48), weight=d(144, 48, scale=48**-0.5), bias=d(144)), F.linear))(Draw(n)),
    "layer_norm": lambda n: layer_norm(n, (3, 17, 48), True),
    "layer_norm_plain": lambda n: layer_norm(n, (2, 9, 129), False),
    "instance_norm": lambda n: unary(n, (2, 13, 5, 6, 7), lambda x: F.instance_norm(x, eps=1e-5), 2.0, eps=1e-5),
    "batch_norm": lambda n: unary(n, (22, 64), lambda x: F.batch_norm(x, None, None, training=True, eps=1e-5), 2.0, eps=1e-5),
    "gelu": lambda n: unary(n, (7, 129), F.gelu, 3.0),
    "relu": lambda n: unary(n, (7, 129), F.relu),
    "leaky_relu": lambda n: unary(n, (7, 129), lambda x: F.leaky_relu(x, 0.01), slope=0.01),
    "global_avg_pool3d": lambda n: unary(n, (2, 5, 4, 6, 3), lambda x: x.mean((2, 3, 4))),
    "resize_align": lambda n: resize(n, (1, 2, 9, 10, 11), (12, 12, 6), True),
    "resize_half": lambda n: resize(n, (1, 3, 5, 6, 7), (10, 9, 14), False),
    "info_nce": lambda n: info_nce(n, 33, 40, 0.2),
    "info_nce_sharp": lambda n: info_nce(n, 64, 128, 0.07),
    "dice_ce_2": lambda n: dice_ce(n, 1, 2, (9, 7, 5)),
    "dice_ce_21": lambda n: dice_ce(n, 2, 21, (6, 5, 4)),
    "window_attention_whole": lambda n: window_attention(n, 1, (7, 14, 7), 2, 16, (0, 0, 0)),
    "window_attention_shift": lambda n: window_attention(n, 1, (14, 14, 14), 2, 4, (3, 3, 3)),
    "window_attention_pad": lambda n: window_attention(n, 2, (9, 8, 10), 2, 8, (0, 0, 0)),
    "window_attention_pad_shift": lambda n: window_attention(n, 1, (9, 8, 10), 1, 12, (3, 3, 3)),
    "window_attention_small_grid": lambda n: window_attention(n, 2, (4, 4, 4), 3, 16, (3, 3, 3)),
    "window_attention_mixed_grid": lambda n: window_attention(n, 1, (4, 9, 7), 3, 16, (3, 3, 3)),
    "voco_loss_grid3": lambda n: voco_loss(n, 2, 2, 3, 64),
    "voco_loss_grid4": lambda n: voco_loss(n, 3, 2, 4, 32),
    "voco_loss_cvpr1": lambda n: voco_loss(n, 2, 2, 4, 16, "cvpr1"),
    "voco_loss_cvpr3": lambda n: voco_loss(n, 2, 2, 4, 16, "cvpr3"),
    "adamw": lambda n: adamw(n, (37, 5), 12, 1e-2, 0.01, 3),
    "sliding_window": lambda n: sliding_window(n, (1, 1, 21, 13, 8), (8, 8, 8), 0.75, "constant"),
    "sliding_window_gaussian": lambda n: sliding_window(n, (1, 2, 10, 17, 9), (8, 8, 8), 0.5, "gaussian"),
    "sliding_window_padded": lambda n: sliding_window(n, (1, 1, 5, 15, 8), (8, 8, 8), 0.25, "constant"),
    "swin_unetr": lambda n: swin_unetr(n, 12, 3, "monai-1.3"),
    "swin_unetr_standard_merging": lambda n: swin_unetr(n, 12, 2, "standard"),
    "swin_unetr_embedding": lambda n: swin_unetr_embedding(n, 12),
    "voco_head": lambda n: voco_head(n, 12, 48, 40, 2, 1, 2),
    "swin_unetr_b_state_dict": state_dict_list,
    "voco_trajectory": lambda n: voco_trajectory(n, 3, 1e-4, 12, 48, 40, 2, 1, 2),
}

if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", default=os.path.dirname(os.path.abspath(__file__)))
    arguments.add_argument("--only", default="", help="cases whose names contain this text")
    arguments = arguments.parse_args()
    OUT = arguments.out
    torch.set_default_dtype(torch.float64)
    for case, write in CASES.items():
        if arguments.only in case:
            write(case)
