"""The exceptions a caller may want to tell apart.

    LoraError                    anything this package reports on purpose
    ├── ConfigError              a setting is unknown, out of range or contradicts another
    │   └── TargetError          a target pattern matches nothing, or something that cannot be adapted
    ├── DataError                a file or its rows cannot be used
    ├── RoutingError             a row names no adapter, or an unknown one
    ├── AdapterFileError         an adapter folder is broken or belongs to another base
    ├── ModelError               the base model cannot be loaded or does not fit the task
    ├── TrainingError            training cannot go on (non-finite loss, nothing to train)
    │   └── Interrupted          the user stopped the run; everything is saved
    └── SaveError                writing failed (disk full, no permission); what was there before still is

Every message says what is wrong, where, and what to do. On the command line each becomes one message and exit code 2.
"""


class LoraError(Exception):
    """Base class of everything this package raises on purpose."""


class ConfigError(LoraError, ValueError):
    """A setting is unknown, out of range or contradicts another."""


class TargetError(ConfigError):
    """A target pattern matches nothing, or something that cannot be adapted."""


class DataError(LoraError, ValueError):
    """A file or its rows cannot be used."""


class RoutingError(LoraError, ValueError):
    """A row names no adapter, or an unknown one."""


class AdapterFileError(LoraError, ValueError):
    """An adapter folder is broken or belongs to another base."""


class ModelError(LoraError, ValueError):
    """The base model cannot be loaded or does not fit the task."""


class TrainingError(LoraError, RuntimeError):
    """Training cannot go on."""


class Interrupted(TrainingError):
    """The user stopped the run; everything is saved and the message says how to resume."""


class SaveError(LoraError, OSError):
    """Writing failed; what was there before still is."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error``, torch's or Python's own, means that there was too little memory, on whatever device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's; it is not loaded here
        return True
    # Of its allocator on the CPU: a plain RuntimeError, which nothing but its words tells from others.
    return type(error) is RuntimeError and "allocate memory" in str(error)
