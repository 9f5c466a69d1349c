"""MONAI's chain from file to cached volume, on one thread: the peer of `vocoe bench read`.

    python3 monai_read.py '[{"path": "scan.nii.gz", "spacing": [1.5, 1.5, 1.5], "window": [-175, 250], "pad": [64, 64, 64]}]' 3

Prints one JSON object: the versions, the seconds of every run of every volume, and the process's largest resident set in bytes.
Needs torch, monai and nibabel, and for MONAI 1.3 numpy < 2.
"""

import json
import resource
import sys
import time

import monai
import torch
from monai.transforms import (
    Compose,
    CropForegroundd,
    EnsureChannelFirstd,
    LoadImaged,
    Orientationd,
    ScaleIntensityRanged,
    Spacingd,
    SpatialPadd,
)


def chain(spacing, window, pad):
    low, high = window
    return Compose(
        [
            LoadImaged(keys="image", image_only=True),
            EnsureChannelFirstd(keys="image"),
            Orientationd(keys="image", axcodes="RAS"),
            Spacingd(keys="image", pixdim=spacing, mode="bilinear"),
            ScaleIntensityRanged(keys="image", a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True),
            CropForegroundd(keys="image", source_key="image"),
            SpatialPadd(keys="image", spatial_size=pad),
        ]
    )


def seconds(volume, runs):
    steps = chain(volume["spacing"], volume["window"], volume["pad"])
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        image = steps({"image": volume["path"]})["image"]
        times.append(time.perf_counter() - started)
    return {"seconds": times, "dims": list(image.shape[1:])}


def main():
    torch.set_num_threads(1)
    volumes, runs = json.loads(sys.argv[1]), int(sys.argv[2])
    times = [seconds(volume, runs) for volume in volumes]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"torch": torch.__version__, "monai": monai.__version__, "volumes": times, "peak_bytes": peak}))


try:
    main()
except Exception as error:
    # MONAI wraps what went wrong, as numpy 2 does to MONAI 1.3, in errors that do not say it
    while error.__cause__:
        error = error.__cause__
    raise SystemExit(f"{type(error).__name__}: {error}") from None
