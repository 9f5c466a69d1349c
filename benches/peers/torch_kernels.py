"""Times single operations in PyTorch for `vocoe bench kernels --peer PYTHON`, which runs this file.

The first line of standard input is {"device", "dtype", "threads"}; each further line is one case, {"op", "inputs", "params", "wrt"}:
sizes in channels-last layouts, and the inputs whose gradients are timed (none: the operation itself, without autograd). Each
line is answered with {"seconds": median} or {"seconds": null, "problem": why}. Volumes are taken as PyTorch likes them:
channels first, on a GPU also channels last in memory, and the faster counts.
"""
import json
import sys
import time

import torch
import torch.nn.functional as F

SETTINGS = json.loads(sys.stdin.readline())
CUDA = SETTINGS["device"].startswith("cuda")
DTYPE = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[SETTINGS["dtype"]]
BATCH, ENOUGH, LONG, LEAST, FEWEST, MOST = 1e-3, 0.2, 2.0, 5, 3, 50  # as in cli/bench/kernels/time.rs


# ------------------------------------------------------------------------------------------------------- operations
def attention(qkv, pad, table, heads, window, shift):
    """[B, D, H, W, 3C] -> [B, D, H, W, C]; pads, rolls and cuts into windows as MONAI does around its attention."""
    b, *grid, c3 = qkv.shape
    side = grid[0]
    w = min(side, window)
    shift = shift if side > window else 0
    rest = -side % w
    whole = side + rest
    if rest:
        x = pad.expand(b, whole, whole, whole, c3).clone()
        x[:, :side, :side, :side] = qkv
    else:
        x = qkv
    if shift:
        x = x.roll((-shift,) * 3, (1, 2, 3))
    n, per = whole // w, w**3
    x = x.view(b, n, w, n, w, n, w, 3, heads, c3 // 3 // heads).permute(7, 0, 1, 3, 5, 8, 2, 4, 6, 9)
    q, k, v = x.reshape(3, b * n**3, heads, per, -1)
    at = torch.stack(torch.meshgrid(*[torch.arange(window)] * 3, indexing="ij")).flatten(1)
    offset = at[:, :, None] - at[:, None] + window - 1
    index = ((offset[0] * (2 * window - 1) + offset[1]) * (2 * window - 1) + offset[2])[:per, :per].to(qkv.device)
    mask = table[index].permute(2, 0, 1)[None]
    if shift:
        part = torch.zeros(whole, device=qkv.device)
        part[-w:-shift], part[-shift:] = 1, 2
        parts = (part[:, None, None] * 9 + part[:, None] * 3 + part).view(n, w, n, w, n, w).permute(0, 2, 4, 1, 3, 5).reshape(-1, per)
        apart = -100.0 * (parts[:, None] != parts[:, :, None]).to(qkv.dtype)
        mask = (mask + apart[:, None]).repeat(b, 1, 1, 1)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype))
    y = y.view(b, n, n, n, heads, w, w, w, -1).permute(0, 1, 5, 2, 6, 3, 7, 4, 8).reshape(b, whole, whole, whole, c3 // 3)
    if shift:
        y = y.roll((shift,) * 3, (1, 2, 3))
    return y[:, :side, :side, :side]


def merging(x):
    return torch.cat([x[:, i::2, j::2, k::2] for i in (0, 1) for j in (0, 1) for k in (0, 1)], -1)


def instance_norm(x, *residual, slope):
    y = F.instance_norm(x, eps=1e-5)
    return F.leaky_relu(y + residual[0] if residual else y, slope, inplace=True)


def info_nce(q, k, targets, temperature):
    return F.cross_entropy(F.normalize(q) @ F.normalize(k).T / temperature, targets.abs())


# Operations on volumes get them channels first, and weights as PyTorch's layers hold them.
VOLUMES = {
    "conv3d": lambda x, w, stride, padding: F.conv3d(x, w, stride=stride, padding=padding),
    "conv_transpose3d": lambda x, w, stride: F.conv_transpose3d(x, w, stride=stride),
    "instance_norm": instance_norm,
    "resize": lambda x, size: F.interpolate(x, size=[size] * 3, mode="trilinear"),
    "global_avg_pool": lambda x: x.mean((2, 3, 4)),
    "leaky_relu": lambda x, slope: F.leaky_relu(x, slope),
    "concat": lambda *xs: torch.cat(xs, 1),
}
ROWS = {
    "linear": F.linear,
    "layer_norm": lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b, 1e-5),
    "gelu": F.gelu,
    "relu": F.relu,
    "add": torch.add,
    "batch_norm": lambda x: F.batch_norm(x, None, None, training=True, eps=1e-5),
    "cosine": lambda a, b: F.normalize(a) @ F.normalize(b).T,
    "info_nce": info_nce,
    "window_attention": attention,
    "patch_merging": merging,
    "l2_norm": torch.linalg.vector_norm,
    "ema": lambda teacher, student: teacher.mul_(0.9).add_(student, alpha=0.1),
}


def adamw(x, m, v, vmax, gradient):
    """The update of one parameter, fused where PyTorch can."""
    parameter = torch.nn.Parameter(x)
    parameter.grad = gradient
    return torch.optim.AdamW([parameter], lr=1e-4, weight_decay=0.01, amsgrad=True, fused=True).step


# ------------------------------------------------------------------------------------------------------- timing
def call_of(case, layout):
    """What is timed, as a function without arguments."""
    inputs = [torch.rand(dims, device=SETTINGS["device"]).mul_(2).sub_(1).to(DTYPE) for dims in case["inputs"]]
    if case["op"] == "adamw":
        return adamw(*inputs)
    if case["op"] in VOLUMES:
        function = VOLUMES[case["op"]]
        inputs = [t.permute(0, 4, 1, 2, 3).contiguous(memory_format=layout) for t in inputs]
    else:
        function = ROWS[case["op"]]
    if not case["wrt"]:
        return torch.no_grad()(lambda: function(*inputs, **case["params"]))
    wanted = [inputs[i].requires_grad_() for i in case["wrt"]]
    y = function(*inputs, **case["params"])
    dy = torch.rand_like(y)
    return lambda: torch.autograd.grad(y, wanted, dy, retain_graph=True)


def batch(call, calls):
    if CUDA:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
    started = time.perf_counter()
    for _ in range(calls):
        call()
    if not CUDA:
        return time.perf_counter() - started
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def measure(call):
    for _ in range(3 if CUDA else 1):
        call()
    calls = int(min(max(BATCH / batch(call, 1), 1), 1000))
    times, started = [], time.perf_counter()
    while True:
        elapsed, n = time.perf_counter() - started, len(times)
        if not (n < FEWEST or n < LEAST and elapsed < LONG or n < MOST and elapsed < ENOUGH):
            return sorted(times)[n // 2]
        times.append(batch(call, calls) / calls)


def answer(case):
    layouts = [torch.contiguous_format]
    if CUDA and case["op"] in VOLUMES:
        layouts.append(torch.channels_last_3d)
    try:
        return {"seconds": min(measure(call_of(case, layout)) for layout in layouts)}
    except (RuntimeError, KeyError, TypeError) as problem:
        return {"seconds": None, "problem": repr(problem)}


torch.manual_seed(0)
torch.set_num_threads(SETTINGS["threads"])
torch.backends.cudnn.benchmark = True
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
torch.zeros(1, device=SETTINGS["device"])
print(json.dumps({"version": torch.__version__}), flush=True)
for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), flush=True)
