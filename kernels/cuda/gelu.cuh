// GELU with the exact error function, for the kernels that compute it: y = x · Φ(x), dy/dx = Φ(x) + x · φ(x), with
// Φ(x) = erfc(−x / √2) / 2, which keeps the relative accuracy of both tails, and φ(x) = exp(−x² / 2) / √(2π).
#pragma once
#include "device.cuh"

DEVICE float distribution(float x) { return 0.5f * erfcf(-0.70710678f * x); }
DEVICE float density(float x) { return 0.39894228f * expf(-0.5f * x * x); }
// Of x and Φ(x). Fused by name: left to a compiler, the sum rounds as it stands beside other code.
DEVICE float slope(float x, float below) { return fmaf(x, density(x), below); }
