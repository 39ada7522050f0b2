"""Whole jobs, as the command line runs them and as Python may: load, train, evaluate, report; load again, merge."""

from lora.workflow.checking import check
from lora.workflow.many import train_many
from lora.workflow.merging import merge_folder
from lora.workflow.resuming import resume
from lora.workflow.run import TrainResult, train
from lora.workflow.several import choose, load_several
from lora.workflow.tuned import load_alike, load_tuned

__all__ = [
    "TrainResult",
    "check",
    "choose",
    "load_alike",
    "load_several",
    "load_tuned",
    "merge_folder",
    "resume",
    "train",
    "train_many",
]
