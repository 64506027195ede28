"""A rank of a ring over several nodes: `torchrun -m experiments.nodes.rank JSON`."""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from experiments import check, measure
from experiments.case import Case
from experiments.die_with_parent import die_with_parent
from experiments.procedures import ranks
from experiments.workload import build

# In the environment: what the node's cards are, as JSON.
CARDS = "ATTENTION_CARDS_OF_NODE"
# A line of what failed begins so; it is of one of these kinds, the first of which says most.
TOLD = "rank failed: "
WRONG, OUT_OF_MEMORY, FAILED, BUSY = "wrong", "out of memory", "failed", "busy"
# Characters: their JSON is then shorter than what a pipe takes whole.
_LONGEST = 600


def tell_failure(text: str, kind: str = FAILED) -> None:
    """A line for the supervisor, by way of the step: short, so that no other cuts it in two."""
    print(f"{TOLD}{json.dumps({'kind': kind, 'text': text[:_LONGEST]})}", flush=True)


def main(text: str) -> int:
    """Measure this rank; the first one writes what all of them found."""
    die_with_parent()
    asked, rank = json.loads(text), int(os.environ["RANK"])
    case = Case.from_mapping(asked["case"])
    try:
        found = _measure(rank, case, asked["device"], Path(asked["reference"]), asked["limits"])
        found["cards"] = json.loads(os.environ[CARDS])
        of_ranks = [None] * case.world_size if rank == 0 else None
        dist.gather_object(found, of_ranks)
        if of_ranks is not None:
            first_of_nodes = of_ranks[:: int(os.environ["LOCAL_WORLD_SIZE"])]
            result = {
                "samples_ms": found["samples_ms"],
                "error": found["error"],
                "ranks": [one["rank"] for one in of_ranks],
                "cards": [one["cards"] for one in first_of_nodes],
            }
            Path(asked["result"]).write_text(json.dumps(result), encoding="utf-8")
    except check.CheckFailed as error:
        tell_failure(str(error), WRONG)
    except (MemoryError, torch.cuda.OutOfMemoryError) as error:
        tell_failure(str(error), OUT_OF_MEMORY)
    except Exception as error:  # The supervisor raises it: nothing is swallowed.
        tell_failure(f"rank {rank}: {type(error).__name__}: {error}")
    else:
        return 0
    return 1


def _measure(rank: int, case: Case, device: str, reference: Path, limits: dict) -> dict:
    """As a rank on one machine does, but for its core or card and for how the ranks meet.

    Samples are the same on every rank; the error is the first one's.
    """
    place, of_node = (int(os.environ[key]) for key in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    if device == "cpu":
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < of_node:
            raise ranks.RankFailed(f"{of_node} ranks need a core each, its node has {len(cores)}")
        os.sched_setaffinity(0, {cores[place]})
    else:
        torch.cuda.set_device(place)
    measure.prepare(device)
    timeout = timedelta(seconds=limits["timeout_s"])
    dist.init_process_group("gloo" if device == "cpu" else "nccl", timeout=timeout)
    whole = build(case, device, dist.group.WORLD)
    mine = whole.on_rank(rank)
    rows = check.sample_rows(case.seq_len, case.seed)
    limited = whole.limited_to(rows.to(mine.inputs[0].device)).on_rank(rank)
    del whole
    out, peak = measure.peak_memory(mine.step, device)
    whole_out, grads = ranks._gather(case, mine, out, limited.gradients())
    error = check.compare(case, whole_out, grads, reference) if rank == 0 else None
    del out, whole_out, grads, limited
    samples, counted = ranks._time(mine, device, limits)
    described = ranks._describe(rank, counted, peak, waits=True)
    return {"samples_ms": samples, "error": error, "rank": described}


if __name__ == "__main__":
    status = main(sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    # Without the end of libraries, which may wait for ranks that are gone.
    os._exit(status)
