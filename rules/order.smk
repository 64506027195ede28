# In which order cases are measured, on which of several cards, and which share a cluster's job.


@cache
def turns(round):
    """The cases of a round, the first first, each with the devices that take it.

    Of all cases, so that a shape stays on its card where a limit leaves some to the next run.
    """
    seed, number = f"{machines.host().id} {round}", ROUNDS.index(round) + 1
    found = schedule.turns(TASKS.values(), seconds, len(DEVICES), seed, number)
    return {one.task.name: one for one in found}


@cache
def places(round):
    """The order of a round: the first has the highest number."""
    return {name: place for place, name in enumerate(reversed(turns(round)), start=1)}


@cache
def progress(round):
    """Where each case stands among all that is measured, and what is expected to be left then."""
    further = len(ROUNDS) - ROUNDS.index(round) - 1
    left = (1 + further) * sum(map(expected, ASKED))
    found = {}
    ordered = [name for name in turns(round) if name in ASKED]
    for place, name in enumerate(ordered, start=1):
        where = f"{round} of {len(ROUNDS)}, {place}/{len(ASKED)}"
        about = f"about {duration(left / len(DEVICES))} to measure"
        found[name] = f"{where}, {about}: {label(TASKS[name].case)}"
        left -= expected(name)
    return found


def about(wildcards):
    """A case and its place; to a cluster's jobs nothing, which share what is asked for in words."""
    return TIER if IS_CLUSTER else progress(wildcards.round)[wildcards.case]


def device_of(round, case):
    """What a case is measured on: of several cards its own, for what holds several the first on."""
    if len(DEVICES) == 1:
        return DEVICE
    held = turns(round)[case].devices
    return DEVICE if len(held) > 1 else DEVICES[held[0]]


def holds(round, case, place):
    """Whether a case holds the device of this place: 1 or 0."""
    return int(place in turns(round)[case].devices)


@cache
def groups(round):
    """Of each case that is still to be measured on one card, the group of cases that share its job.

    All systems of a shape share one, and so a card; the profile says how many cases at most beyond
    a shape.
    """
    most = workflow.group_settings.group_components.get(GROUP, 1)
    tasks = (one.task for one in turns(round).values() if not one.task.case.is_spread)
    waiting = [task for task in tasks if task.name in WAITING[round]]
    found = {}
    for number, names in enumerate(schedule.bundles(waiting, most)):
        group = f"{GROUP}-{round}-{number}"
        # Or each would be a job of its own.
        workflow.group_settings.group_components[group] = len(names)
        found |= dict.fromkeys(names, group)
    return found


def group_of(round, case):
    """The group of a case; of one that Snakemake is told to measure again, its own."""
    return groups(round).get(case, f"{GROUP}-{round}-{case}")
