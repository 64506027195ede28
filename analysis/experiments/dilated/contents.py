"""What the experiment `dilated` shows, by name."""

from analysis.experiments.dilated import tables
from analysis.standard import contents, rate, roofline, speedup
from analysis.standard.by_machine import ByMachine

EXPERIMENT = "dilated"
FIGURES = contents.FIGURES | {
    "rate": rate.rate,
    "speedup": speedup.speedup,
    "roofline": roofline.roofline,
}
_SHAPES = ("small", "medium", "large")
_CARDS = ByMachine(tables.vram, EXPERIMENT, 1, ("Dilated batch", "Multihead batch"))
TABLES = (
    {name: ByMachine(tables.shape(i), EXPERIMENT) for i, name in enumerate(_SHAPES)}
    | {"cpu": tables.cpu, "vram": _CARDS}
    | contents.tables(EXPERIMENT)
)
NUMBERS = ()
