"""Whole jobs, as the command line runs them and as Python may: load, train, evaluate, report; load again, merge."""

from lora.workflow.checking import check
from lora.workflow.evaluating import facts_of_evaluation, load_to_measure, read_to_measure
from lora.workflow.many import train_many
from lora.workflow.merging import merge_folder
from lora.workflow.resuming import resume
from lora.workflow.run import TrainResult, train
from lora.workflow.several import choose, load_several
from lora.workflow.tuned import load_tuned

__all__ = [
    "TrainResult",
    "check",
    "choose",
    "facts_of_evaluation",
    "load_several",
    "load_to_measure",
    "load_tuned",
    "merge_folder",
    "read_to_measure",
    "resume",
    "train",
    "train_many",
]
