"""What PyTorch's own run in bf16 loses in the operations of make_cases.py: writes bf16_errors.json, the bounds of
`vocoe verify --dtype bf16`. Needs what make_cases.py needs.

    venv/bin/python bf16_errors.py

‖error‖ / ‖value‖ of each output and gradient against float64. Attention runs under autocast, as in training; other operations have
their inputs and the cotangent in bf16. Losses are not in bf16.
"""
import json
import os

import make_cases as cases
import torch

LOSSES = ("info_nce", "dice_ce")
errors = {}


def off(ours, exact):
    return float((ours.double() - exact).norm() / exact.norm())


def results(inputs, f, cast, cotangent):
    leaves = {k: cast(v).clone().requires_grad_() for k, v in inputs.items()}
    y = f(**leaves)
    y.backward(cotangent.to(y.dtype))
    return {"out.y": y.detach()} | {f"grad.{k}": v.grad for k, v in leaves.items()}


def compare(name, kind, attrs, inputs, f):
    if kind in LOSSES:
        return
    cotangent = cases.Draw(name + ".cot")(*f(**inputs).shape)
    exact = results(inputs, f, lambda v: v, cotangent)
    if kind == "window_attention":
        torch.set_default_dtype(torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            ours = results(inputs, f, lambda v: v.float(), cotangent)
        torch.set_default_dtype(torch.float64)
    else:
        ours = results(inputs, f, lambda v: v.bfloat16(), cotangent)
    errors[name] = {k: float(f"{off(ours[k], v):.3g}") for k, v in exact.items()}


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    cases.differentiated = compare
    cases.save = lambda *case: None
    others = ("swin_unetr", "voco_head", "voco_trajectory", "sliding_window")
    for name, case in cases.CASES.items():
        if not name.startswith(others):
            case(name)
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "bf16_errors.json"), "w") as file:
        json.dump(errors, file, indent=1)
        file.write("\n")
