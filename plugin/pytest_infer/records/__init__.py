"""What was measured: frozen records, no I/O, no maths, no torch."""

from __future__ import annotations

from pytest_infer.records.breakdown import (
    OUTSIDE,
    Breakdown,
    Operators,
    OperatorTimes,
    PassParts,
    PhaseOperators,
    PhaseTimes,
    Role,
    RoleTimes,
    RoleTurns,
)
from pytest_infer.records.counters import Counters
from pytest_infer.records.experts import ExpertSite, ExpertUsage
from pytest_infer.records.fidelity import Fidelity, Picked, Split
from pytest_infer.records.generation import Limits, Output, PromptInfo, Reported, StopReason, TokenTrace
from pytest_infer.records.load import (
    Arrivals,
    Level,
    LevelKind,
    LoadRequest,
    Objectives,
    Repetition,
    RequestStatus,
    UnderLoad,
)
from pytest_infer.records.loading import CacheState, Loading, LoadingRound
from pytest_infer.records.machine import MachineInfo, MachineProbe
from pytest_infer.records.model import ModelInfo, RoleWork, Work
from pytest_infer.records.observed import Observed
from pytest_infer.records.reading import Quality, Reading, absent
from pytest_infer.records.results import (
    AgainstInfo,
    CurvePoint,
    Drift,
    MeasurementWarning,
    PromptRecord,
    RankMemory,
    Ranks,
    SystemRecord,
    Turns,
    WarningKind,
)
from pytest_infer.records.rounds import Pass, Profile, Round, Timeline
from pytest_infer.records.scores import TOP, Reference, Scores, TextScore
from pytest_infer.records.suite import Average, SuiteAverages

__all__ = [
    "OUTSIDE",
    "TOP",
    "AgainstInfo",
    "Arrivals",
    "Average",
    "Breakdown",
    "CacheState",
    "Counters",
    "CurvePoint",
    "Drift",
    "ExpertSite",
    "ExpertUsage",
    "Fidelity",
    "Level",
    "LevelKind",
    "Limits",
    "LoadRequest",
    "Loading",
    "LoadingRound",
    "MachineInfo",
    "MachineProbe",
    "MeasurementWarning",
    "ModelInfo",
    "Objectives",
    "Observed",
    "OperatorTimes",
    "Operators",
    "Output",
    "Pass",
    "PassParts",
    "PhaseOperators",
    "PhaseTimes",
    "Picked",
    "Profile",
    "PromptInfo",
    "PromptRecord",
    "Quality",
    "RankMemory",
    "Ranks",
    "Reading",
    "Reference",
    "Repetition",
    "Reported",
    "RequestStatus",
    "Role",
    "RoleTimes",
    "RoleTurns",
    "RoleWork",
    "Round",
    "Scores",
    "Split",
    "StopReason",
    "SuiteAverages",
    "SystemRecord",
    "TextScore",
    "Timeline",
    "TokenTrace",
    "Turns",
    "UnderLoad",
    "WarningKind",
    "Work",
    "absent",
]
