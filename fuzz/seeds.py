#!/usr/bin/env python3
"""Writes a few small valid inputs for every target into corpus/, for the fuzzer to start from. Needs nothing but Python."""
import io, json, os, pickle, struct, sys, types, zipfile, zlib
from collections import OrderedDict

HERE = os.path.dirname(os.path.abspath(__file__))
DIMS = (5, 4, 3)


def seed(target, name, *parts):
    folder = os.path.join(HERE, "corpus", target)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name), "wb") as f:
        f.write(b"".join(parts))


def nifti(order, version, single, code, form):
    """A volume with sform, qform or neither; `code` is the voxel type."""
    h = bytearray([348, 540][version - 1])
    put = lambda fmt, at, *v: struct.pack_into(order + fmt, h, at, *v)
    put("i", 0, len(h))
    dim = (4, *DIMS, 1, 1, 1, 1)
    zooms, quaternion, shift = (-1.0, 3.0, 2.0, 5.0), (0.0, 0.0, 1.0), (10.0, 20.0, -30.0)
    rows = (-3.0, 0.1, 0.0, 9.0, 0.0, 2.0, 0.0, 8.0, 0.0, 0.0, 5.0, 7.0)
    magic = (b"n+" if single else b"ni") + b"%d\0" % version
    if version == 1:
        put("8h", 40, *dim), put("h", 70, code), put("4f", 76, *zooms), put("f", 108, 352.0), put("2f", 112, 2.0, -1000.0)
        put("2h", 252, form == 1, form == 2), put("6f", 256, *quaternion, *shift), put("12f", 280, *rows)
        h[344:348] = magic
    else:
        h[4:8] = magic
        put("h", 12, code), put("8q", 16, *dim), put("4d", 104, *zooms), put("q", 168, 544), put("2d", 176, 2.0, -1000.0)
        put("2i", 344, form == 1, form == 2), put("6d", 352, *quaternion, *shift), put("12d", 400, *rows)
    numbers = [40 * i for i in range(DIMS[0] * DIMS[1] * DIMS[2])]
    kind = {4: "h", 16: "f", 64: "d", 1280: "Q"}[code]
    return bytes(h) + (bytes(4) if single else b"") + struct.pack(f"{order}{len(numbers)}{kind}", *numbers)


def volumes():
    for version, (code, form) in [(v, c) for v in (1, 2) for c in ((4, 0), (16, 1), (64, 2), (1280, 2))]:
        for layout in range(16):
            order = "<>"[(layout + code) % 2]
            data = nifti(order, version, layout % 4 < 2, code, form)
            seed("nifti", f"v{version}-{code}-{layout}", bytes([layout]), data)
    packed = zlib.compressobj(9, zlib.DEFLATED, 31)
    seed("nifti", "gzip", b"\0", packed.compress(nifti("<", 1, True, 4, 2)) + packed.flush())


class Storage:
    def __init__(self, key, numel):
        self.key, self.numel = key, numel


class Tensor:
    """Pickled as the call of torch._utils._rebuild_tensor_v2 that torch.save writes."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, (*self.arguments, False, OrderedDict())


def pretend_torch():
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    torch.FloatStorage = type("FloatStorage", (), {"__module__": "torch"})
    rebuild = lambda *a: None
    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = rebuild
    sys.modules.update({"torch": torch, "torch._utils": utils})


def dump(value):
    out = io.BytesIO()
    pickler = pickle.Pickler(out, 2)
    location = lambda s: ("storage", sys.modules["torch"].FloatStorage, s.key, "cpu", s.numel)
    pickler.persistent_id = lambda o: location(o) if isinstance(o, Storage) else None
    pickler.dump(value)
    return out.getvalue()


def checkpoints():
    pretend_torch()
    shared = Storage("0", 6)
    tensors = OrderedDict(a=Tensor(shared, 0, (2, 3), (3, 1)), b=Tensor(shared, 1, (2, 2), (1, 2)))
    tensors["c"] = Tensor(Storage("1", 4), 2, (), ())
    plain = dump(tensors)
    nested = dump({"state_dict": dict(tensors), "epoch": 7, "lr": 0.1, "names": ["x", None, (True, 1 << 40)]})
    storages = [struct.pack("<6f", *range(6)), struct.pack("<4f", *range(4))]
    for name, data in (("plain", plain), ("nested", nested)):
        seed("torch", f"pickle-{name}", b"\1", data)
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as z:
            z.writestr("archive/data.pkl", data)
            z.writestr("archive/byteorder", "little")
            for key, storage in enumerate(storages):
                z.writestr(f"archive/data/{key}", storage)
        seed("torch", f"zip-{name}", b"\0", archive.getvalue())
        head = [dump(0x1950A86A20F9469CFC6C), dump(1001), dump({"little_endian": True})]
        tail = [struct.pack("<q", len(s) // 4) + s for s in storages]
        seed("torch", f"legacy-{name}", b"\0", *head, data, dump(["0", "1"]), *tail)


def safetensors():
    best = json.dumps({"step": 3, "loss": 0.5})
    metadata = {"step": "3", "best": best, "config": "steps = 9", "patch_merging": "monai-1.3"}
    sizes = {"F32": 4, "F64": 8, "F16": 2, "BF16": 2, "I64": 8, "U8": 1}
    header, data = {"__metadata__": metadata}, b""
    for name, size in sizes.items():
        header[f"backbone.{name}"] = {"dtype": name, "shape": [2, 3], "data_offsets": [len(data), len(data) + 6 * size]}
        data += bytes(range(6 * size))
    text = json.dumps(header).encode()
    seed("safetensors", "file", b"\0", struct.pack("<Q", len(text)), text, data)
    seed("safetensors", "header", b"\1", text, b"\0", data)
    header["__metadata__"]["checksum"] = "00000000"
    seed("safetensors", "checksum", b"\1", json.dumps(header).encode(), b"\0", data)


def texts():
    settings = "size = \"tiny\"\nsteps = 9\nlr = 1e-3\nrow_dropout = 0.5\nloss = \"infonce\"\nexclude = [\"*_pet*\"]\ndemo = false\n"
    sources = "[[sources]]\npath = 'a'\nregion = 'chest'\n\n[[sources]]\npath = \"b\\u00e9\"\nregion = \"headneck\"\n"
    seed("settings", "toml", b"\0", settings.encode(), sources.encode())
    seed("settings", "demo", b"\0demo = true\nsize = \"L\"\nfeature_size = 24\nkeep = 1_0\n")
    seed("settings", "msd", b"\1", json.dumps({"training": [{"image": "./list.txt"}, "list.txt", "z.nii"]}).encode())
    seed("settings", "nnunet", b"\1", json.dumps({"file_ending": ".nii.gz", "channel_names": {"0": "CT"}}).encode())
    seed("settings", "list", b"\2# volumes\nlist.txt # this\n../b.nii.gz\n\n./x/y.hdr\n")
    names = ["loss", "intra", "inter", "reg", "lr", "grad_norm", "crops_per_s", "data_wait", "position_top1"]
    lines = [json.dumps({"step": s, **dict.fromkeys(names, 10.0 ** (3 - s)), "base_cosine": -0.1}) for s in (1, 2, 3)]
    seed("report", "run", b"steps = 9\nwarmup = 1\ngrid = 3\n\0", "\n".join(lines).encode())
    seed("report", "wild", b"crops = 1\n\0", "\n".join(lines).replace("10.0", "1e300").encode(), b"\nhalf a li")


if __name__ == "__main__":
    volumes(), checkpoints(), safetensors(), texts()
