# What cases cost: before, within a limit of hours, and after.


def seconds(task):
    """What a case is expected to take here."""
    cards = cards_for(task.case)
    return cost.seconds(task.case, task.limits, KIND, DEVICE_NAME, cards=cards).total


@cache
def expected(name):
    """Device-seconds that a case is expected to take here: a ring takes those of all its cards."""
    return hours.expected_s(TASKS[name], KIND, DEVICE_NAME, cards_for(TASKS[name].case))


def holding(name):
    """The rounds in which a case is still to be measured: its devices in each, and seconds.

    A cluster's devices are as one here, of which a ring takes as many times as long.
    """
    spent = expected(name) if IS_CLUSTER else seconds(TASKS[name])
    return [
        (round, turns(round)[name].devices, spent)
        for round, names in WAITING.items()
        if name in names
    ]


def within_hours():
    """What a limit leaves: all that is measured, and the most valuable cases that fit into it."""
    cost_of = {
        one.task.name: expected(one.task.name) * count
        for one in value.ordered(TIER)
        if (count := sum(one.task.name in names for names in WAITING.values()))
        and one.task.name in TASKS
    }
    chosen = {
        *schedule.fitting({name: holding(name) for name in cost_of}, 3600 * HOURS)
    }
    left = [spent for name, spent in cost_of.items() if name not in chosen]
    told = f"hours={HOURS}: {len(chosen)} cases, the most valuable of those that fit"
    if not cost_of:
        told = f"hours={HOURS}: all {len(TASKS)} cases are measured"
    elif not chosen:
        told = f"hours={HOURS}: no case fits that is not measured yet"
    if left:
        told += f"; left out: {len(left)} cases, {hours.in_words(sum(left))}, of which the least "
        told += f"takes {duration(min(left))}"
    logger.warning(told)
    done = {name for name in TASKS if name not in cost_of}
    return {name: task for name, task in TASKS.items() if name in done | chosen}


def told_before():
    """What is still to be measured, in a line."""
    per_round = sum(expected(name) for names in WAITING.values() for name in names)
    count = sum(map(len, WAITING.values()))
    beside = "" if len(DEVICES) == 1 else f", on {len(DEVICES)} cards at the same time"
    return f"{count} cases to measure, {hours.in_words(per_round)} expected{beside}"


def told_after(began):
    """What was measured since then, beside what was expected of it."""
    paths = [Path(path) for round in ROUNDS for path in of_round(round)]
    spent = hours.measured(paths, began)
    return hours.comparison(spent.values(), (expected(path.stem) for path in spent))
