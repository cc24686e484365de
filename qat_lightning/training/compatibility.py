"""Check what can be combined: two models (quantizers, shared weights, classes, vocabulary), interventions and losses."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from qat_lightning.data.labels import normalized
from qat_lightning.quantization.quantizers.base import Quantizer


def check_teacher(teacher: nn.Module, student: nn.Module) -> None:
    """Raise ValueError unless one model can teach the other.

    Not a quantized teacher, one that shares weights with the student, has its classes in another order, or another vocabulary.
    """
    for name, part in teacher.named_modules():
        if isinstance(part, Quantizer):
            raise ValueError(f"the teacher is quantized ({name}): hand over the model in full precision")
    own = {id(parameter) for parameter in student.parameters()}
    if shared := [name for name, parameter in teacher.named_parameters() if id(parameter) in own]:
        raise ValueError(f"teacher and student share {shared[0]}: hand over a copy.deepcopy for one of them")
    if (difference := other_order(label_names(teacher), label_names(student))) is not None:
        name, first, second = difference
        raise ValueError(
            f"Label order mismatch: the teacher maps {name!r} to {first}, the student to {second}. Reorder the teacher's head"
            " with its config.id2label."
        )
    sizes = [getattr(getattr(model, "config", None), "vocab_size", None) for model in (teacher, student)]
    if None not in sizes and sizes[0] != sizes[1]:
        raise ValueError(f"the teacher knows {sizes[0]} tokens and the student {sizes[1]}: take one with its tokenizer")


def label_names(model: nn.Module) -> list[str] | None:
    """The classes of a model by their numbers; None where they have no names but LABEL_0, LABEL_1, …"""
    return names_of(getattr(model, "config", None))


def names_of(configuration: Any) -> list[str] | None:
    """The same, as the model's configuration has them: in `id2label`, or in `label2id` alone."""
    given: Mapping[Any, str] = getattr(configuration, "id2label", None) or {}
    names = [str(name) for _, name in sorted(given.items(), key=lambda entry: int(entry[0]))]
    if not all(re.fullmatch(r"LABEL_\d+", name) for name in names):
        return names
    numbers = {int(number): str(name) for name, number in (getattr(configuration, "label2id", None) or {}).items()}
    if sorted(numbers) != list(range(len(names))) or all(re.fullmatch(r"LABEL_\d+", name) for name in numbers.values()):
        return None
    return [numbers[number] for number in range(len(names))]


def other_order(names: Sequence[str] | None, expected: Sequence[str] | None) -> tuple[str, int, int] | None:
    """Return a class that both know, with its two numbers, where these differ; None where no number differs.

    Names are compared without regard to case, spaces and hyphens. Names that only one of them has are ignored.

    >>> other_order(["no", "yes"], ["yes", "no"])
    ('no', 0, 1)
    """
    numbers = {normalized(name): number for number, name in enumerate(expected or ())}
    for number, name in enumerate(names or ()):
        if numbers.get(normalized(name), number) != number:
            return name, number, numbers[normalized(name)]
    return None
