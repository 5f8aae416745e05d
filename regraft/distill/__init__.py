"""Reverse distillation: a student's loss, and the teachers weaker than itself."""

from regraft.distill.distill import Distill
from regraft.distill.losses import LabelSmoothing, Over, cross_entropy, kl, over_time, softened_kl, tet
from regraft.distill.networks import AverageTeacher, NestedTeacher, NetworkTeacher, PreviousTeacher
from regraft.distill.remembered import Remembered
from regraft.distill.teachers import StepTeacher, Teacher, VirtualTeacher

__all__ = [
    "AverageTeacher",
    "Distill",
    "LabelSmoothing",
    "NestedTeacher",
    "NetworkTeacher",
    "Over",
    "PreviousTeacher",
    "Remembered",
    "StepTeacher",
    "Teacher",
    "VirtualTeacher",
    "cross_entropy",
    "kl",
    "over_time",
    "softened_kl",
    "tet",
]
