"""Replace signals of the student by signals of the teacher, and stop gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qat_lightning.models.calls import Hook, by_call, calls
from qat_lightning.models.capture import Signals
from qat_lightning.models.module_paths import entrances, layer_pairs, layer_paths, site_paths
from qat_lightning.models.sites import CORE_SITES, INPUT_SITES, check_site


class Intervention:
    """`with intervention.apply(student, teacher): student_signals = observe(batch)`.

    Teacher Intervention, arXiv:2302.11812 §3; the points and the gradient stops are those of the released code:
    TI-O replaces `attention.projection`, TI-C `attention.context` (both stop the gradient into query, key and value),
    TI-M replaces `attention.probs` (query and key). Stopping means that the input of those projections is detached:
    their own weights still learn from a loss on the scores, lower layers do not learn through them.

    Args:
        replace: the sites that take the teacher's signal, in every layer. None of them: no intervention.
        detach: the sites whose module gets a detached input.
        at: only these layers (0 is the first); None for all.

    Where the teacher is deeper, each layer takes the signal that `layer_pairs` says.

    Raises:
        ValueError: an unknown site; a layer that the student does not have; a teacher without that signal or with
            another shape; a family that computes query, key and value in one layer (GPT-2), for TI-M.
    """

    def __init__(
        self, replace: Sequence[str] = (), detach: Sequence[str] = (), at: Sequence[int] | None = None
    ) -> None:
        self.replace = tuple(check_site(site) for site in replace)
        if inputs := INPUT_SITES.intersection(self.replace):
            raise ValueError(f"site {min(inputs)!r} is an input, which cannot be replaced: choose attention.projection")
        self.detach = tuple(check_site(site) for site in detach)
        self.at = None if at is None else tuple(at)

    @property
    def sites(self) -> tuple[str, ...]:
        """Return the sites whose signals the teacher must provide."""
        return self.replace

    @contextmanager
    def apply(self, student: nn.Module, teacher_signals: Signals) -> Iterator[None]:
        """Within the context, the student runs with the teacher's signals and the gradient stops."""
        with ExitStack() as hooks:
            for handle in self._hooks(student, teacher_signals):
                hooks.callback(handle.remove)
            yield

    def _hooks(self, student: nn.Module, teacher: Signals) -> Iterator[RemovableHandle]:
        for paths in entrances(student, self.detach):
            stops = dict.fromkeys(self._layers(len(paths)), _detach)
            for module, hook in _placed(student, paths, stops):
                yield module.register_forward_pre_hook(hook)
        for site in self.replace:
            if site not in teacher:
                raise ValueError(f"the teacher's signals lack {site!r}: observe the teacher with intervention.sites")
            paths = site_paths(student, site)
            pairs = layer_pairs(site, len(paths), len(teacher[site]))
            gifts = {layer: _give(site, teacher[site][pairs[layer][1]], layer) for layer in self._layers(len(paths))}
            for module, hook in _placed(student, paths, gifts):
                yield module.register_forward_hook(hook)

    def check(self, student: nn.Module) -> None:
        """Raise ValueError if the family of `student` does not support this intervention; attention need not be open."""
        depth = len(layer_paths(student))
        self._layers(depth)
        entrances(student, self.detach)
        for site in self.replace:
            if site not in CORE_SITES:
                site_paths(student, site)

    def _layers(self, depth: int) -> Sequence[int]:
        layers = range(depth) if self.at is None else self.at
        if beyond := [layer for layer in layers if not 0 <= layer < depth]:
            raise ValueError(f"intervention at layer {beyond[0]}: the student's layers are 0 to {depth - 1}")
        return layers


def _placed(student: nn.Module, paths: list[str], hooks: Mapping[int, Hook]) -> Iterator[tuple[nn.Module, Hook]]:
    """Yield each module that has a hook in one of its calls, with one hook for all its calls."""
    for path, positions in calls(student, paths).items():
        if hooks.keys() & set(positions):
            yield student.get_submodule(path), by_call(positions, hooks)


def _detach(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.detach() if isinstance(value, Tensor) else value for value in inputs)


def _give(site: str, signal: Tensor, layer: int) -> Hook:
    def hook(module: nn.Module, inputs: Any, own: Tensor) -> Tensor:
        if signal.shape != own.shape:
            raise ValueError(
                f"the teacher has no signal of the student's shape {tuple(own.shape)} at {site!r} of layer {layer}, but"
                f" {tuple(signal.shape)}: an intervention needs a teacher of the student's width"
            )
        return signal.detach().to(own.dtype)

    return hook
