# What a failed job tells: the last line of its log first, which says why, and of its files a few.
import logging

from snakemake_interface_logger_plugins.common import LogEvent

# Some have hundreds.
FILES_TOLD = 3


def cause(paths):
    """The last line of a job's log; None where there is none yet."""
    for path in map(Path, paths):
        lines = path.read_text("utf-8", "replace").split("\n") if path.is_file() else []
        if told := [line for line in lines if line.strip()]:
            return told[-1].strip()


def shortened(record):
    """A filter of the logger, which lets all through."""
    if getattr(record, "event", None) == LogEvent.JOB_ERROR:
        record.rule_msg = record.rule_msg or cause(record.log)
        for kind in ("input", "output"):
            files = getattr(record, kind)
            if len(files) > FILES_TOLD:
                further = f"and {len(files) - FILES_TOLD} more"
                setattr(record, kind, [*files[:FILES_TOLD], further])
    return True


logger.addFilter(shortened)
