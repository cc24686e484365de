"""What nobody reads is not computed: the branch of an attention that ends where an intervention replaces its signal."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from qat_lightning.models.module_paths import attention_paths, layer_paths, source_paths
from qat_lightning.models.sites import READERS
from qat_lightning.quantization.modules.activation_checkpointing import FIRST_ALONE
from qat_lightning.quantization.modules.attention import InstrumentedAttention
from qat_lightning.quantization.modules.unread import unread

QUANTIZED_FOR = {"query": "query_factor", "key": "key_factor", "probs": "context", "value": "context"}
"""A core's quantizer slot → the port whose signal is made of what it quantizes."""


class Reading:
    """`reads(site)`: whether anybody reads what one layer's attention itself makes of `site`.

    reads(s) = s is watched, or s is not replaced and reads(what is made of s). It is asked while the layer runs, so it
    knows all hooks that are there: those of losses as those of anybody else.

    Args:
        modules: site → what makes its signal, and lets it pass.
        replaced: sites that take another signal than their own.
        ours: the keys of the hooks that put it there, which read nothing.
    """

    def __init__(
        self, modules: Mapping[str, Collection[nn.Module]], replaced: Collection[str], ours: Collection[int]
    ) -> None:
        self.modules, self.replaced, self.ours = modules, replaced, ours

    def __call__(self, site: str) -> bool:
        if any(self._watched(module) for module in self.modules.get(site, ())):
            return True
        return site not in self.replaced and (site not in READERS or self(READERS[site]))

    def port(self, name: str) -> bool:
        """The same, by the name of a core's port."""
        return self(f"attention.{name}")

    def _watched(self, module: nn.Module) -> bool:
        """By a hook; or because it learns from all that passes, as a step size does in its warm-up."""
        if module.training and getattr(module, "following", False):
            return True
        hooks: tuple[Mapping[int, Any], ...] = (module._forward_hooks, module._forward_pre_hooks)
        return any(key not in self.ours for kind in hooks for key in kind)


@contextmanager
def unread_left_out(
    student: nn.Module, layers: Iterable[int], replaced: Collection[str], ours: Collection[int]
) -> Iterator[None]:
    """Within, these layers' attention does not compute what `Reading` says that nobody reads.

    A compiled student computes all of it: a graph would have to be made anew for each set of readers. So does one of whose
    modules somebody watches the inside by a hook of their own, on all modules or on one that holds the branch.
    """
    compiled = torch.compiler.is_compiling() or any(
        module._compiled_call_impl is not None for module in student.modules()
    )
    if compiled or _global_forward_hooks or _global_forward_pre_hooks:
        yield
        return
    sources, attentions, paths = source_paths(student), attention_paths(student), layer_paths(student)
    with ExitStack() as changed:
        for layer in layers:
            made = {site: student.get_submodule(path) for site, path in sources[layer].items()}
            attention = student.get_submodule(attentions[layer])
            if any(
                map(_watched_within, _holders(student, [*sources[layer].values(), attentions[layer]], paths[layer]))
            ):
                continue
            reads = Reading(_modules(made, attention), replaced, ours)
            for source in dict.fromkeys(made.values()):
                own = [site for site, module in made.items() if module is source]
                changed.enter_context(_runs_as(source, _stand_in(source, own, reads)))
            if isinstance(core := getattr(attention, "core", None), InstrumentedAttention):
                changed.enter_context(_runs_as(core, partial(core.forward, reads=reads.port)))
        yield


def _modules(made: Mapping[str, nn.Module], attention: nn.Module) -> dict[str, list[nn.Module]]:
    modules = {site: [*source.modules()] for site, source in made.items()}
    if isinstance(core := getattr(attention, "core", None), InstrumentedAttention):
        for port in (*InstrumentedAttention.PORTS, *InstrumentedAttention.WATCHED):
            modules.setdefault(f"attention.{port}", []).append(core.get_submodule(port))
        for slot, site in QUANTIZED_FOR.items():
            modules[f"attention.{site}"] += core.get_submodule(f"{slot}_quantizer").modules()
    for returned in ("attention.context", "attention.probs"):
        modules.setdefault(returned, []).append(attention)
    return modules


def _holders(student: nn.Module, paths: Iterable[str], layer: str) -> list[nn.Module]:
    """The modules of a layer that hold those of `paths`, and the attention's core."""
    found = set()
    for path in paths:
        while (path := path.rpartition(".")[0]) != layer:
            found.add(path)
    cores = [
        module
        for path in paths
        for module in student.get_submodule(path).children()
        if isinstance(module, InstrumentedAttention)
    ]
    return [student.get_submodule(path) for path in found] + cores


def _watched_within(module: nn.Module) -> bool:
    """By a hook that sees what goes in, too; those of `SignalCapture` read one signal."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(not hasattr(hook, FIRST_ALONE) for hook in hooks)


def _stand_in(source: nn.Module, sites: Iterable[str], reads: Reading) -> Callable[[Tensor], Tensor]:
    own, width = source.forward, int(getattr(source, "out_features", 0) or source.nf)  # type: ignore[arg-type]

    def forward(input: Tensor) -> Tensor:
        return own(input) if any(map(reads, sites)) else unread(input, (*input.shape[:-1], width))

    return forward


@contextmanager
def _runs_as(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
