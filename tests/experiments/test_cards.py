"""Which cards there are: what nvidia-smi lists, what MIG divides, what a user leaves of them."""

import stat

import pytest

from experiments import cards
from experiments.cards import DeviceError

LIST = """\
0, GPU-aaaa, NVIDIA H100 80GB HBM3, 580.65, 81559
1, GPU-bbbb, NVIDIA H100 80GB HBM3, 580.65, 81559
2, GPU-cccc, NVIDIA H100 80GB HBM3, 580.65, 81559
3, GPU-cdef, NVIDIA GB10, 580.65, [N/A]
"""
DIVIDED = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb)
  MIG 3g.40gb     Device  0: (UUID: MIG-1111)
  MIG 1g.10gb     Device  1: (UUID: MIG-2222)
GPU 2: NVIDIA H100 80GB HBM3 (UUID: GPU-cccc)
GPU 3: NVIDIA GB10 (UUID: GPU-cdef)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The cards, where nvidia-smi says so, torch is built for CUDA and a user wants those."""

    def here(visible=None, *, listed=LIST, divided="", torch="2.13.0+cu130"):
        (tmp_path / "listed").write_text(listed)
        (tmp_path / "divided").write_text(divided)
        program = tmp_path / "nvidia-smi"
        program.write_text(
            f'#!/bin/sh\n[ "$1" = -L ] && exec cat {tmp_path}/divided\nexec cat {tmp_path}/listed\n'
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        monkeypatch.setattr(cards.metadata, "version", lambda _: torch)
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        cards.gpus.cache_clear()
        return cards.gpus()

    yield here
    cards.gpus.cache_clear()


def indices(found):
    return [gpu.index for gpu in found]


def test_all_cards_where_nothing_is_said(here):
    found = here()
    assert indices(found) == ["0", "1", "2", "3"]
    assert found[1] == cards.Gpu("1", "GPU-bbbb", "NVIDIA H100 80GB HBM3", "580.65", 81559 * 2**20)
    assert found[3].memory_bytes == 0
    assert here(torch="2.13.0+cpu") == ()


@pytest.mark.parametrize(
    ("visible", "left"),
    [
        ("2,0", ["2", "0"]),
        ("GPU-b, 3", ["1", "3"]),
        ("1,-1,2", ["1"]),
        ("1,9,2", ["1"]),
        ("1,1,2", ["1"]),
        ("", []),
        ("-1", []),
    ],
)
def test_what_a_user_leaves_in_the_order_of_cuda(here, visible, left):
    assert indices(here(visible)) == left


@pytest.mark.parametrize("visible", ["9", "GPU-x", "MIG-1111"])
def test_a_name_of_no_card_is_an_error(here, visible):
    with pytest.raises(DeviceError, match=f"CUDA_VISIBLE_DEVICES={visible}: is none of the cards"):
        here(visible)


def test_instances_stand_for_the_card_that_mig_divides(here):
    found = here(divided=DIVIDED)
    assert indices(found) == ["0", "1:0", "1:1", "2", "3"]
    assert found[2].uuid == "MIG-2222" and found[2].memory_bytes == 10 * 2**30
    assert found[1].name == "NVIDIA H100 80GB HBM3 MIG 3g.40gb"
    assert indices(here("MIG-2222", divided=DIVIDED)) == ["1:1"]
    # CUDA shows the first instance of a card that is named whole.
    assert indices(here("1", divided=DIVIDED)) == ["1:0"]
    assert indices(here("GPU-bbbb", divided=DIVIDED)) == ["1:0"]


@pytest.mark.parametrize("count", ["0", "-1", "65", "two", "1.5", ""])
def test_stand_ins_are_counted(monkeypatch, count):
    monkeypatch.setenv(cards.STAND_INS, count)
    cards.stand_ins.cache_clear()
    with pytest.raises(DeviceError, match=f"{cards.STAND_INS}={count}: expected an integer"):
        cards.stand_ins()


def test_a_scheduler_gives_stand_ins_as_it_gives_cards(monkeypatch):
    monkeypatch.setenv(cards.STAND_INS, "4")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    cards.stand_ins.cache_clear()
    assert [card.uuid for card in cards.stand_ins()] == ["stand-in-2", "stand-in-3"]
    cards.stand_ins.cache_clear()
