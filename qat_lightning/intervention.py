"""The teacher's signal in place of the student's, and where the gradient stops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from qat_lightning.signals import Signals
from qat_lightning.sites import check_site, site_paths


class Intervention:
    """`with intervention.by(teacher, student): student_signals = observe(batch)`.

    Teacher Intervention, arXiv:2302.11812 §3; the points and the gradient stops are those of the released code:
    TI-O replaces `attention.projection`, TI-C `attention.context` (both stop the gradient into query, key and value),
    TI-M replaces `attention.probs` (query and key). Stopping means that the input of those projections is detached:
    their own weights still learn from a loss on the scores, lower layers do not learn through them.

    Args:
        replace: the sites that take the teacher's signal, in every layer. None of them: no intervention.
        detach: the sites whose module gets a detached input.
        at: only these layers (0 is the first); None for all.

    Raises:
        ValueError: an unknown site; a layer that the student does not have; a teacher without that signal or with
            another shape.
    """

    def __init__(
        self, replace: Sequence[str] = (), detach: Sequence[str] = (), at: Sequence[int] | None = None
    ) -> None:
        self.replace = tuple(check_site(site) for site in replace)
        self.detach = tuple(check_site(site) for site in detach)
        self.at = None if at is None else tuple(at)

    @property
    def sites(self) -> tuple[str, ...]:
        """What the teacher must be asked for."""
        return self.replace

    @contextmanager
    def by(self, teacher: Signals, student: nn.Module) -> Iterator[None]:
        with ExitStack() as hooks:
            for site in self.detach:
                for _, module in self._modules(student, site):
                    hooks.callback(module.register_forward_pre_hook(_detach).remove)
            for site in self.replace:
                if site not in teacher:
                    raise ValueError(
                        f"the teacher's signals lack {site!r}: observe the teacher with intervention.sites"
                    )
                for layer, module in self._modules(student, site):
                    hooks.callback(module.register_forward_hook(_give(site, teacher[site], layer)).remove)
            yield

    def _modules(self, student: nn.Module, site: str) -> list[tuple[int, nn.Module]]:
        paths = site_paths(student, site)
        layers = range(len(paths)) if self.at is None else self.at
        if beyond := [layer for layer in layers if not 0 <= layer < len(paths)]:
            raise ValueError(f"intervention at layer {beyond[0]}: the student's layers are 0 to {len(paths) - 1}")
        return [(layer, student.get_submodule(paths[layer])) for layer in layers]


def _detach(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.detach() if isinstance(value, Tensor) else value for value in inputs)


def _give(site: str, signals: list[Tensor], layer: int) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def hook(module: nn.Module, inputs: Any, own: Tensor) -> Tensor:
        if layer >= len(signals) or signals[layer].shape != own.shape:
            raise ValueError(
                f"the teacher has no signal of the student's shape {tuple(own.shape)} at {site!r} of layer {layer}:"
                " an intervention needs a teacher of the student's depth and width"
            )
        return signals[layer].detach().to(own.dtype)

    return hook
