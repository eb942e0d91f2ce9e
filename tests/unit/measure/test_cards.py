"""Cards as the doctor tells them, by an NVML that is made of fakes."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from pytest_infer.analysis.doctor import pitfalls
from pytest_infer.cli.main import app
from pytest_infer.measure.machine import cards
from pytest_infer.measure.machine.cards import Card

GIB = 2**30


class Library:
    """One card that may not tell everything."""

    def __init__(self, *lacks):
        self.closed = 0
        for name in lacks:
            setattr(self, name, self.unsupported)

    def unsupported(self, *_):
        raise RuntimeError("Not Supported")

    def nvmlInit(self):  # noqa: N802
        pass

    def nvmlShutdown(self):  # noqa: N802
        self.closed += 1

    def nvmlDeviceGetCount(self):  # noqa: N802
        return 1

    def nvmlDeviceGetHandleByIndex(self, number):  # noqa: N802
        return number

    def nvmlDeviceGetName(self, _):  # noqa: N802
        return b"NVIDIA H200"

    def nvmlSystemGetDriverVersion(self):  # noqa: N802
        return "580.159.04"

    def nvmlDeviceGetMemoryInfo(self, _):  # noqa: N802
        return SimpleNamespace(total=140 * GIB, free=120 * GIB, used=20 * GIB)

    def nvmlDeviceGetEnforcedPowerLimit(self, _):  # noqa: N802
        return 500_000

    def nvmlDeviceGetPowerManagementDefaultLimit(self, _):  # noqa: N802
        return 700_000

    def nvmlDeviceGetApplicationsClock(self, _, kind):  # noqa: N802
        return {1: 1980, 2: 2619}[kind]

    def nvmlDeviceGetEccMode(self, _):  # noqa: N802
        return [1, 0]

    def nvmlDeviceGetMigMode(self, _):  # noqa: N802
        return (0, 0)


WHOLE = Card(
    name="NVIDIA H200", memory_bytes=140 * GIB, free_bytes=120 * GIB, driver="580.159.04", power_limit_w=500,
    power_default_w=700, clocks_mhz=(1980, 2619), ecc=True,
)  # fmt: skip


def test_a_card(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    library = Library()
    assert cards.describe(library) == (WHOLE,)
    assert library.closed == 1
    held, limited = pitfalls.of_cards([WHOLE])
    assert "of NVIDIA H200 are held by others" in held.evidence
    assert "may take 500 W, and 700 W" in limited.evidence
    assert limited.suggestion == "keep to one limit: runs under another are not compared with these"


def test_what_a_card_does_not_tell_is_unknown(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    names = ("MemoryInfo", "EnforcedPowerLimit", "MigMode", "EccMode", "ApplicationsClock")
    silent = Library(*(f"nvmlDeviceGet{name}" for name in names))
    (card,) = cards.describe(silent)
    assert (card.memory_bytes, card.power_limit_w, card.divided) == (None, None, False)
    assert (card.ecc, card.clocks_mhz) == (None, None)
    assert pitfalls.of_cards([card]) == ()


def test_what_of_its_state_changes_speed():
    told = {"driver": "580.159.04", "power_limit": "500 W", "card_clocks": "1980 and 2619 MHz", "ecc": "on"}
    assert cards.settings([WHOLE, WHOLE]) == told
    unlike = cards.settings([WHOLE, replace(WHOLE, power_limit_w=700, ecc=False, clocks_mhz=None)])
    assert unlike == told | {"power_limit": "500 W, 700 W", "ecc": "on, off"}
    assert cards.settings([Card(name="A")]) is None
    assert cards.settings([]) is None


@pytest.mark.parametrize("visible", ["", "1", "GPU-x"])
def test_only_cards_that_this_process_may_use(monkeypatch, visible):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert cards.describe(Library("nvmlDeviceGetUUID")) == ()


def test_a_card_in_parts(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-7f1a0")
    library = Library()
    library.nvmlDeviceGetMigMode = lambda _: (1, 1)
    (card,) = cards.describe(library)
    divided, *_ = pitfalls.of_cards([card])
    assert "divided (MIG)" in divided.evidence


def test_without_a_driver_or_a_binding(monkeypatch):
    assert cards.describe(Library("nvmlInit")) == ()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert cards.describe() == ()


def test_the_doctor_tells_them(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", Library())
    monkeypatch.setenv("COLUMNS", "200")
    told = CliRunner().invoke(app, ["doctor"]).output
    assert "NVIDIA H200 · 140 GiB memory, 120 GiB free · driver 580.159.04 · up to 500 W" in told
    assert "held by others" in told
