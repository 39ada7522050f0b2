"""Several adapters measured on labelled rows in one pass, and what the result says of where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lora.config import DataConfig
from lora.core.routing import BASE
from lora.errors import ConfigError
from lora.evaluation.inputs import Inputs, check_same_task, prepare
from lora.io.describe import files_sha256
from lora.io.peft import read_sidecar
from lora.workflow.several import Chosen, Loaded, load_several
from lora.workflow.tuned import adapter_folder

if TYPE_CHECKING:
    from lora.evaluation.evaluate import Evaluation


def load_to_measure(chosen: Chosen, **loading: Any) -> Loaded:
    """The base with all adapters on it; that they can be measured together is found out before it is loaded.

    Args:
        loading: as of `load_several`.

    Raises:
        ConfigError: no adapter, or adapters of different tasks, labels or bases.
        AdapterFileError, ModelError: something cannot be loaded; an adapter does not say its task.
    """
    if not chosen.adapters:
        raise ConfigError("name an adapter's or a run's folder; a base alone does not say by which task it is measured")
    told = {name: read_sidecar(adapter_folder(place)) for name, place in chosen.adapters.items()}
    check_same_task({name: its["task"] for name, its in told.items()})
    if chosen.model is None and not loading.get("allow_other_base"):
        _check_same_base({name: its.get("base") or {} for name, its in told.items()})
    loaded = load_several(chosen, **loading)
    types = {name: its["training"].get("dtype") for name, its in told.items() if its.get("training")}
    if len(set(types.values())) > 1:
        said = ", ".join(f"{name} in {its}" for name, its in types.items())
        loaded.notes.append(f"The adapters were trained on bases of different types ({said}); one serves all here.")
    return loaded


def _check_same_base(bases: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ConfigError where bases differ in name and fingerprint.

    One that was moved has another name; one of which an adapter brings rows of its own has another fingerprint. What
    differs in one of the two alone is left to loading, which looks at the weights.
    """
    first, *others = bases.items()
    for name, its in others:
        if all(key in own and own[key] != its.get(key) for own in (first[1],) for key in ("name", "fingerprint")):
            raise ConfigError(
                f"{first[0]} and {name} were trained on different bases ({first[1]['name']}, fingerprint "
                f"{first[1]['fingerprint']}; {its.get('name')}, fingerprint {its.get('fingerprint')}), and one pass "
                "has one base; evaluate them one at a time, or name the base that both fit with --model"
            )


def read_to_measure(loaded: Loaded, data: str, config: DataConfig) -> Inputs:
    """The rows of ``data``, tokenised for these adapters. Raises ConfigError, DataError, ModelError."""
    task = next(its for name, its in loaded.tasks.items() if name != BASE)
    return prepare(loaded.model, data, list(loaded.folders), loaded.tokenizer, task, config=config)


def facts_of_evaluation(
    loaded: Loaded, inputs: Inputs, evaluation: Evaluation, settings: Mapping[str, Any]
) -> dict[str, Any]:  # fmt: skip
    """What the JSON of an evaluation says beside its numbers, under the names that a run's ``report.json`` has.

    ``data``: files and their SHA-256; ``base``: name, class, fingerprint; ``adapters``: of each its folder, the digest
    of its files, what it was trained on and what it was begun with; ``config``: ``settings``, and of each adapter its
    own and those of its training; ``versions``.

    Args:
        settings: how was measured, by name.
    """
    from lora.evaluation.report import versions

    told = {name: read_sidecar(folder) for name, folder in loaded.folders.items()}
    first = next(iter(told.values()))
    return {
        "base": {**first.get("base", {}), "name": str(loaded.model.base.name_or_path)},
        "adapters": {
            name: {
                "folder": str(folder),
                "sha256": files_sha256(folder),
                **{key: its[key] for key in ("trained_on", "begun_with", "lora_version") if its.get(key)},
            }
            for (name, folder), its in zip(loaded.folders.items(), told.values(), strict=True)
        },
        "data": {"sources": [asdict(file) for file in inputs.files], "rows": evaluation.rows},
        "versions": versions(),
        "config": {
            **settings,
            "adapters": {
                name: {
                    "adapter": loaded.model.adapters[name].model_dump(mode="json"),
                    "training": its.get("training"),
                    "max_length": its.get("max_length"),
                }
                for name, its in told.items()
            },
        },
    }
