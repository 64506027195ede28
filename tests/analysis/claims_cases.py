"""A small claims file, records with known numbers, and predicates that several tests share."""

import copy
import math

import pandas as pd
import yaml

from analysis import claims
from analysis.statistics.rounds import RoundSamples
from analysis.statistics.spread import PLAIN

# For want of records: which of the two hangs on what the grids hold.
WAITS = (claims.CARD, claims.NOT_MEASURED)
EMPTY = pd.DataFrame(columns=["experiment", "variant"])
MIB = 2**20


def _blocks(sparsity):
    known = {"name": "Blocks", "variant": "block-sparse", "pattern": "blocks"}
    return known | {"sparsity": sparsity}


HEAD = {
    "cards": {
        "old": {
            "device": "Old Card",
            "flops": {"float32": 1e12},
            "bytes_per_s": 1e11,
            "memory_bytes": 64 * MIB,
            "source": "none",
        }
    },
    "mechanisms": {
        name: {"title": name, "explanation": f"by {name}.", "variant": None, "evidence": None}
        for name in ("slip", "unknown")
    },
    "headlines": {},
    "systems": {
        "core": {
            "name": "Core",
            "variant": "dilated-gather",
            "replica": "published-head-partition",
            "pattern": "dilated",
        },
        "fast": {
            "name": "Fast",
            "variant": "dilated-sdpa",
            "replica": "published-over-heads",
            "pattern": "dilated",
        },
        "twin": {
            "name": "Twin",
            "variant": "ring-dilated",
            "replica": "published-over-heads",
            "pattern": "dilated",
        },
        "base": {"name": "Base", "variant": "dense", "pattern": "dense"},
        "written": {
            "name": "Written",
            "variant": "dense-eager",
            "replica": "dense-eager",
            "pattern": "dense",
            "scores": 2,
            "fused": "base",
        },
        "ring": {
            "name": "Ring",
            "variant": "ring-standard",
            "replica": "published-dense-ring",
            "pattern": "dense",
            "scores": 2,
        },
        "curve": {
            "name": "Curve",
            "variant": "ring-hilbert",
            "replica": "published-dense-ring",
            "one_code": "ring",
            "pattern": "dense",
            "scores": 2,
        },
        "half": _blocks(0.5),
        "tenth": _blocks(0.9),
        "wrap": {
            "name": "Wrap",
            "variant": "multihead-dilated-gather",
            "pattern": "dilated",
            "projections": 4,
            "contains": "core",
        },
    },
}
WRITEUP = {
    "source": {
        "repository": "somebody/something",
        "file": "docs/w.md",
        "commit": "0123abc",
        "date": "2025-06-25",
        "script": "benchmark.py",
    },
    "experiment": "exp",
    "card": "old",
    "conditions": {
        "heads": 8,
        "head_dim": 64,
        "dtype": "float32",
        "is_causal": False,
        "pass": "forward",
        "pattern": "dilated",
        "block_size": 64,
    },
    "branches": {1024: [[512, 1], [1024, 2]], 2048: [[512, 1], [1024, 2]]},
    "stand_ins": [{"batch": 1}],
}
AT = {"batch": 2, "seq_len": 1024}
NO_BRANCHES = {"segment_lengths": None, "dilation_rates": None}


def entry(predicate, published=None, name="it"):
    fields = {"id": name, "line": 7, "section": "here", "claim": "a claim"}
    fields |= {"predicate": predicate}
    return fields if published is None else fields | {"published": published}


def data(*entries):
    return {**copy.deepcopy(HEAD), "writeups": {"w": copy.deepcopy(WRITEUP) | {"claims": entries}}}


def load(tmp_path, content):
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(_plain(content)))
    return claims.load(path)


def _plain(value):
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def row(variant, ms=10.0, memory=64 * MIB, machine="cpu-1", status="ok", **case):
    kind = "cpu" if machine.startswith("cpu") else "cuda"
    case = {"batch": 2, "seq_len": 1024, "dtype": "float32"} | case
    case = {"sparsity": math.nan, "pattern": math.nan, "block_size": math.nan} | case
    case = {"world_size": math.nan, "simulated": None} | case
    ok = status == "ok"
    blocks = "" if math.isnan(case["sparsity"]) else f"-{case['sparsity']}"
    ranks = "" if math.isnan(case["world_size"]) else f"-{case['world_size']:g}"
    ranks += "-virtual" if case["simulated"] else ""
    shape = f"{case['batch']}-{case['seq_len']}{blocks}{ranks}"
    path = f"results/{machine}/{variant}-{shape}.json"
    return {
        "experiment": "as_published" if variant.startswith("published") else "exp",
        "variant": variant,
        "heads": 8,
        "kv_heads": 8,
        "head_dim": 64,
        "is_causal": False,
        "pass": "forward",
        "segment_lengths": (512, 1024),
        "dilation_rates": (1, 2),
        "seed": 0,
        "status": status,
        "reason": None if ok else f"{status} on purpose",
        "samples": _rounds(ms, (0.001, 0.0, -0.001)) * ok,
        "spread": PLAIN,
        "median_ms": ms if ok else math.nan,
        "low_ms": 0.99 * ms if ok else math.nan,
        "high_ms": 1.01 * ms if ok else math.nan,
        "peak_memory_bytes": float(memory) if ok else math.nan,
        "machine": machine,
        "vouched": True,
        "device": "Old Card" if machine == "cuda-old" else "cpu" if kind == "cpu" else "New Card",
        "device_kind": kind,
        "device_memory_bytes": 80 * MIB,
        "path": path,
        "paths": (path,),
        "occasions": 3,
        "realised_density": 1.0,
        "code_digest": "now",
        "started_at": "2026-01-01",
        "commands": (f"measure {variant} {case['seq_len']}",),
        **case,
    }


def _rounds(ms, logs):
    """Samples of rounds that differ by `logs`; their geometric mean is `ms` where these cancel."""
    medians = [ms * math.exp(log) for log in logs]
    return tuple(
        RoundSamples("", f"day-{number}", f"round-{number}", ((0.99 * one, one, 1.01 * one),))
        for number, one in enumerate(medians, start=1)
    )


def sparse(sparsity, ms=10.0, **case):
    blocks = {"sparsity": sparsity, "pattern": "dilated", "block_size": 64}
    return row("block-sparse", ms, **(NO_BRANCHES | blocks | case))


def dense(ms=10.0, **case):
    return row("dense", ms, **(NO_BRANCHES | case))


def ring(ms=10.0, variant="ring-standard", **case):
    """Of one rank."""
    return row(variant, ms, **(NO_BRANCHES | {"world_size": 1.0, "simulated": False} | case))


def noisy(rows):
    """The same rows, whose three rounds differ by a factor two, each row in its own order."""
    logs = [place * math.log(2) for place in (-1, 0, 1)]
    turned = (logs[place % 3 :] + logs[: place % 3] for place in range(len(rows)))
    return [
        one | {"samples": _rounds(one["median_ms"], own)}
        for one, own in zip(rows, turned, strict=True)
    ]


def times(core, other, variant="dilated-sdpa", **case):
    return [row("dilated-gather", core, **case), row(variant, other, **case)]


SPEEDUP = {"kind": "speedup", "system": "fast", "against": "core", "at": AT}
HALF = {"kind": "speedup", "system": "half", "against": "base", "at": AT}
ORDER = {"kind": "ordering", "order": ["fast", "core", "wrap"], "at": AT}
SHAPES = [{"batch": 2, "seq_len": 1024}, {"batch": 1, "seq_len": 4096}]
RISING = {"kind": "rising_speedup", "system": "half", "against": "base", "shapes": SHAPES}
TIME = {"kind": "absolute_time", "system": "core", "at": AT, "card": "old", "resolution": 0.01}
GROWTH = {
    "kind": "growth",
    "system": "fast",
    "quantity": "time",
    "at": {"batch": 2, "dilation_rates": [1, 2]},
    "lengths": [1024, 2048, 4096, 8192],
}


def series(power, **case):
    def one(n):
        size = (n / 1024) ** power
        return row("dilated-sdpa", 3 * size, memory=8 * MIB * size, seq_len=n, **case)

    return [one(n) for n in (1024, 2048, 4096, 8192)]
