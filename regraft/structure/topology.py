"""`Topology`: the one stateful object of this room. It keeps and evolves the wiring from the optimiser's step hooks.

Order within an optimiser step: read the dense gradient; mask it; the optimiser steps; clean weights and state; drop by
the new weights; grow by the gradient read before. Masks change in place, so captured addresses stay valid.
"""

from __future__ import annotations

import math
import numbers
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regraft.errors import StructureError, UsageError
from regraft.structure import allocation as alloc
from regraft.structure import optimizer as opt
from regraft.structure.absent import clear
from regraft.structure.birth import GivenWeights, first_mask, row_counts
from regraft.structure.blocks import Block, blocks, gather, scatter
from regraft.structure.events import Event, table
from regraft.structure.exchange import exchange, sampled
from regraft.structure.gradients import GradientMemory
from regraft.structure.presets import preset
from regraft.structure.prunable import matching, prunable
from regraft.structure.ranks import agree, generator, mask_hash
from regraft.structure.rules import Rule, Scope, View
from regraft.structure.schedule import timing


class Topology:
    """The wiring of a model: which connections exist, and how they change while an optimiser trains.

    >>> import regraft, torch
    >>> model = torch.nn.Linear(20, 10)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> topology = regraft.Topology(model, density=0.1, rule="set", steps=100, every=10)
    >>> topology.attach(optimizer)
    >>> topology.connections
    20

    Args:
        model: any module with Linear or Conv weights. Its class and parameter names stay as they are.
        density: connections over all prunable elements, the final one where the rule lets it fall.
        rule: a preset's name (`regraft list rules`) or a `Rule`.
        steps: all optimiser steps of the training; needed where the rule evolves.
        every: optimiser steps from one event to the next.
        until: last step at which an event may happen: a share of `steps` (float) or a number of steps (int).
        allocation: `uniform`, `er`, `erk` or `global`; the rule's own if not given.
        scope: `layer`, `row`, `network` or a `Scope`; the rule's own if not given.
        birth: `rescale` draws the first mask at random and multiplies weights by 1/sqrt(row density), so that deep
            sparse spiking nets do not fall silent; `keep` leaves weights and takes the largest (pruning a trained net).
        include, exclude, dense: name patterns: further tensors, tensors to leave alone, tensors to keep full.
        seed: of all random choices, which are a function of (seed, step) and draw nothing from the global generator.

    Raises:
        UsageError: a setting out of its range, an unknown name, a budget under one connection a layer.
        StructureError: a model without prunable weights.
    """

    def __init__(
        self,
        model: nn.Module,
        density: float = 0.1,
        rule: str | Rule = "rigl",
        *,
        steps: int | None = None,
        every: int = 100,
        until: float | int = 0.75,
        allocation: str | None = None,
        scope: str | Scope | None = None,
        birth: Literal["rescale", "keep"] = "rescale",
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        dense: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        rule = preset(rule) if isinstance(rule, str) else rule
        if not isinstance(rule, Rule):
            raise UsageError(f"rule is {rule!r}: give the name of a preset or a regraft.Rule")
        if scope is not None:
            rule = replace(rule, scope=Scope(scope) if isinstance(scope, str) else scope)  # pyright: ignore[reportArgumentType]
        if birth not in ("rescale", "keep"):
            raise UsageError(f"birth is {birth!r}: give 'rescale' or 'keep'")
        if any(
            c.__name__ in ("FullyShardedDataParallel", "FSDPModule") for m in model.modules() for c in type(m).__mro__
        ):
            raise StructureError(
                "FSDP shards parameters, so masks would differ over ranks: use DistributedDataParallel"
            )
        start = rule.schedule.start_density
        if not (isinstance(density, numbers.Real) and 0 < density <= 1):
            raise UsageError(f"density is {density}: give a number above 0 and at most 1")
        if start is not None and start < density:
            raise UsageError(
                f"rule {rule.name!r} starts at density {start:g}, below the final {density:g}: lower density"
            )
        self.model = model
        self.rule = rule
        self.density = float(density)
        self.birth = birth
        self.seed = int(seed)
        self.allocation = allocation or rule.allocation
        self.step = 0
        self.events: list[Event] = []
        self._evolves = rule.schedule.evolves and not (density == 1 and start is None)
        self.every, self.until = timing(self._evolves, steps, every, until)
        self.last_event = self.until // self.every * self.every

        self._parameters = prunable(model, include, exclude)
        self._dense = matching(model, dense, "dense", self._parameters)
        self._masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in self._parameters.items()}
        self._given = GivenWeights()
        self._bear()
        self._warn_of_nearest_density()
        self._young = {name: torch.zeros_like(m) for name, m in self._masks.items()}
        self._ever = {name: m.clone() for name, m in self._masks.items()}
        self._memory = GradientMemory(rule)
        self._sample: tuple[int, dict[str, Tensor]] = (0, {})
        self._before_event: list[Callable[[nn.Module, int], None]] = []
        self._hooks: list[Any] = []
        self._optimizers: list[Optimizer] = []
        self._skipped = False
        self._replaced = False

    # --- what one can ask -------------------------------------------------------------------------------------------

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """Parameter name -> bool tensor of its shape, True where a connection exists. To be read, not written."""
        return MappingProxyType(self._masks)

    @property
    def connections(self) -> int:
        """Existing connections of the whole network."""
        return sum(int(m.sum()) for m in self._masks.values())

    @property
    def possible(self) -> int:
        """All prunable elements, existing or not."""
        return sum(m.numel() for m in self._masks.values())

    @property
    def exploration(self) -> float:
        """In-time exploration: the share of connections that ever existed."""
        return sum(int(e.sum()) for e in self._ever.values()) / self.possible

    @property
    def mask_hash(self) -> str:
        """16 hex digits over all masks, the same on all ranks and machines."""
        return mask_hash(self._masks)

    @property
    def dense_gradient_due(self) -> bool:
        """Whether the coming backward must deliver gradients of absent connections too; valid until the next step."""
        needs = self.rule.grows.needs if self._evolves else "nothing"
        return (needs == "gradient" and self._is_event(self.step + 1)) or (
            needs in ("accumulated", "momentum") and self.step < self.last_event
        )

    @property
    def candidates(self) -> Mapping[str, Tensor] | None:
        """Where the rule samples: the absent connections among which the coming event chooses, by parameter name.

        None where all of them are. Bool, of the parameter's shape; valid until the next step.
        """
        share = self.rule.grows.sample
        return None if share is None else MappingProxyType(self._candidates(self.step + 1, share))

    def __repr__(self) -> str:
        return (
            f"Topology({self.rule.name!r}, {self.connections:,} of {self.possible:,} connections, "
            f"{len(self.events)} events in {self.step:,} steps)"
        )

    def __str__(self) -> str:
        rule = self.rule
        return table(self._masks, self.events) + (
            f"\nrule {rule.name}, scope {rule.scope.name}, {len(self.events)} events in {self.step:,} steps, "
            f"in-time exploration {self.exploration:.3f}"
        )

    # --- what one can do --------------------------------------------------------------------------------------------

    def attach(self, optimizer: Any) -> None:
        """Let `optimizer.step()` keep and evolve the wiring from now on, through torch's own step hooks.

        Raises:
            OptimizerError: an optimiser whose state is not shaped like the parameter.
            UsageError: an optimiser that does not hold all prunable parameters, or is attached already.
        """
        optimizer = opt.unwrap(optimizer)
        opt.check_owns(optimizer, self._parameters)
        if self._optimizers:
            raise UsageError("this topology is attached already: detach() it first")
        agree(self.mask_hash, self.step)
        for kept in self._tensors().values():  # a model may have moved since
            kept |= {name: t.to(self._parameters[name].device) for name, t in kept.items()}
        self._optimizers.append(optimizer)
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        self._clean()

    def detach(self) -> None:
        """Leave the optimiser alone again. Masks stay, and are no longer enforced."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._optimizers = [], []

    def before_event(self, call: Callable[[nn.Module, int], None]) -> None:
        """Have `call(model, step)` made just before each event, while the wiring is still the old one."""
        self._before_event.append(call)

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Record what growth and taylor need (fp32), then zero the gradients of absent connections.

        Call it after the last backward of a step, after unscaling, and before clipping by norm: else the norm counts
        connections that do not exist. If it is not called, `optimizer.step()` does it. Calling it again is harmless.
        """
        due = self.dense_gradient_due or (self._memory.needs_saliency and self._evolves and self.step < self.last_event)
        if due and not self._finite():
            self._memory.end_step()
            due = False
        for name, p in self._parameters.items():
            if p.grad is None:
                continue
            if due and name not in self._dense:
                self._memory.note(name, p.grad, self._masks[name])
            clear(p.grad, self._masks[name])

    def state_dict(self) -> dict[str, Any]:
        """All that a resume needs: masks, position, accumulators, events. Random choices follow from (seed, step)."""
        return {
            "settings": self._settings(),
            "step": self.step,
            "events": [asdict(e) for e in self.events],
            **{key: {n: t.clone() for n, t in kept.items()} for key, kept in self._tensors().items()},
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave, and zero the weights at connections that do not exist.

        The model's own weights may be loaded before or after; if before the `Topology` was made, nobody else (a
        `DistributedDataParallel`, say) may have written to them since.

        Raises `StructureError` if the state is of other settings or of another model; nothing is changed then.
        """
        mine = self._settings()
        other = {key: (state["settings"].get(key), value) for key, value in mine.items()}
        for key, (theirs, ours) in other.items():
            if theirs != ours:
                raise StructureError(f"the saved wiring has {key} {theirs!r}, this one {ours!r}: use the same settings")
        shapes = {name: mask.shape for name, mask in self._masks.items()}
        if any({name: mask.shape for name, mask in state[key].items()} != shapes for key in ("masks", "young", "ever")):
            raise StructureError("the saved wiring is of another model: its layers or their shapes differ")
        self._given.restore(self._parameters)
        self._memory.clear()
        self._sample = 0, {}
        for key, kept in self._tensors().items():
            for name, saved in state[key].items():
                like = self._masks[name]
                if name in kept:
                    kept[name].copy_(saved)
                else:
                    kept[name] = saved.clone().to(like.device)
        self.step = int(state["step"])
        self.events = [Event(**e) for e in state["events"]]
        self._clean()

    # --- birth ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _bear(self) -> None:
        """Draw the first masks with exact counts, and prepare the weights."""
        start = self.rule.schedule.start_density or self.density
        self._allocate(self.density)  # where the density falls, the final one has to be possible too
        counts = self._allocate(start)
        for index, (name, p) in enumerate(self._parameters.items()):
            if counts[name] == p.numel():
                continue
            self._given.keep(name, p)
            rows = p.detach().float().reshape(len(p), -1)
            score = -rows.abs() if self.birth == "keep" else torch.zeros_like(rows)
            mask = first_mask(score, counts[name], self.rule.scope, generator(self.seed, 0, index))
            self._masks[name].copy_(mask.reshape(p.shape))
            if self.birth == "rescale":
                share = mask.float().mean(dim=1).clamp_min(1 / rows.shape[1])
                p.mul_(share.rsqrt().to(p.dtype).reshape(-1, *[1] * (p.ndim - 1)))
            clear(p, self._masks[name])
            self._given.mark(name, p)

    def _warn_of_nearest_density(self) -> None:
        """`strict` rows cannot meet every density: say which one it became."""
        start = self.rule.schedule.start_density or self.density
        if self.rule.scope.strict and self.connections != alloc.budget(start, self.possible):
            warnings.warn(
                f"with equal rows the nearest density to {start:g} is {self.connections / self.possible:g}",
                stacklevel=3,
            )

    def _allocate(self, density: float) -> dict[str, int]:
        shapes = {name: tuple(p.shape) for name, p in self._parameters.items()}
        return alloc.counts(shapes, density, self.allocation, dense=self._dense, weights=self._parameters)

    # --- hooks ------------------------------------------------------------------------------------------------------

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        found_inf = getattr(optimizer, "found_inf", None)  # set by a GradScaler on fused optimisers only
        self._skipped = found_inf is not None and bool(found_inf)
        closure = kwargs.get("closure", next(iter(args[1:]), None))
        if closure is None:
            self._settle(optimizer)
            return None

        def masked() -> Any:
            loss = closure()
            self._settle(optimizer)
            return loss

        return (optimizer, masked), {}

    @torch.no_grad()
    def _settle(self, optimizer: Optimizer) -> None:
        """Everything between backward and the optimiser's own step."""
        self.mask_gradients()
        if self._skipped:
            return
        grad_scale = getattr(optimizer, "grad_scale", None)
        scale = 1.0 if grad_scale is None else 1 / float(grad_scale)
        for name, p in self._parameters.items():
            self._memory.accumulate(name, p, scale)
        self._replaced = self.rule.replaces_step and self._is_event(self.step + 1)
        if self._replaced:
            self._event(self.step + 1)
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.grad = None

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._given.forget()
        if not self._skipped:
            self._clean()
            self.step += 1
            if self._is_event(self.step) and not self._replaced:
                self._event(self.step)
        self._memory.end_step()

    def _finite(self) -> bool:
        """Whether all gradients of the step are: where one is not, a `GradScaler` skips it, and none is evidence."""
        owned = [p for optimizer in self._optimizers for group in optimizer.param_groups for p in group["params"]]
        grads = [p.grad for p in owned or self._parameters.values() if p.grad is not None and p.numel()]
        grads = [g.coalesce().values() if g.is_sparse else g for g in grads]
        return bool(nn.utils.get_total_norm(grads, math.inf).isfinite())

    def _clean(self) -> None:
        """Exact zeros at absent connections, in the weights and in all that the optimiser keeps."""
        with torch.no_grad():
            for name, p in self._parameters.items():
                mask = self._masks[name]
                untouched = self._given.untouched(name, p)
                clear(p, mask)
                if untouched:
                    self._given.mark(name, p)
                for optimizer in self._optimizers:
                    for value in opt.shaped_state(optimizer, name, p).values():
                        clear(value, mask)

    # --- events -----------------------------------------------------------------------------------------------------

    def _candidates(self, step: int, share: float) -> dict[str, Tensor]:
        """Drawn once for the event of a step, from the wiring before it."""
        if self._sample[0] != step:
            drawn = {}
            for index, (name, mask) in enumerate(self._masks.items()):
                if name not in self._dense:
                    rows = mask.reshape(len(mask) if self.rule.scope.name == "row" else 1, -1)
                    drawn[name] = sampled(rows, share, generator(self.seed, step, index, "sample")).reshape(mask.shape)
            self._sample = step, drawn
        return self._sample[1]

    def _is_event(self, step: int) -> bool:
        return self._evolves and step % self.every == 0 and 0 < step <= self.last_event

    def _event(self, step: int) -> None:
        for call in self._before_event:
            call(self.model, step)
        start = time.perf_counter()
        rule = self.rule
        before = {name: m.clone() for name, m in self._masks.items()}
        zeta = rule.schedule.exchange(step, self.until)
        falls = rule.schedule.start_density is not None
        if rule.grows.sample is not None:
            self._candidates(step, rule.grows.sample)
        if rule.prune is not None:
            self._exchange(rule.prune, step, 0.0, before, falls)
        self._exchange(rule.scope, step, zeta, before, falls and rule.prune is None)
        grown = {name: self._masks[name] & ~before[name] for name in before}
        dropped = {name: before[name] & ~self._masks[name] for name in before}
        self._clean()
        emptied = [name for name, m in self._masks.items() if bool(before[name].any()) and not bool(m.any())]
        if emptied:  # only a scope over the network can do this
            axis = "prune=Scope('layer')" if rule.prune is not None else "scope='layer'"
            warnings.warn(
                f"the event of step {step} left {', '.join(emptied)} without any connection: nothing passes any more. "
                f"Use {axis}, a higher density, or keep it whole with dense=",
                stacklevel=2,
            )
        for name, p in self._parameters.items():
            for optimizer in self._optimizers:
                opt.begin(opt.shaped_state(optimizer, name, p), grown[name], before[name] & self._masks[name])
            self._young[name].copy_(grown[name])
            self._ever[name] |= grown[name]
        self._memory.end_event()
        self._sample = 0, {}
        self.events.append(
            Event(
                step=step,
                dropped={name: int(d.sum()) for name, d in dropped.items()},
                grown={name: int(g.sum()) for name, g in grown.items()},
                connections={name: int(m.sum()) for name, m in self._masks.items()},
                density=self.connections / self.possible,
                exploration=self.exploration,
                mask_hash=self.mask_hash,
                seconds=time.perf_counter() - start,
            )
        )
        agree(self.mask_hash, self.step)

    def _exchange(self, scope: Scope, step: int, zeta: float, before: dict[str, Tensor], falls: bool) -> None:
        """Drop and grow within each group of `scope`; with `falls`, to the counts planned for this step."""
        names = [name for name in self._masks if name not in self._dense]
        planned = self._planned(scope, step) if falls else None
        for index, block in enumerate(blocks(scope.name, {n: self._masks[n].shape for n in names})):
            exists = gather(block, self._masks)
            gone = gather(block, before) & ~exists
            if self.rule.grows.sample is not None:
                gone = ~gather(block, self._candidates(step, self.rule.grows.sample))
            young = gather(block, self._young) & exists
            aim = exists.sum(dim=1).cpu() if planned is None else planned[block.names]
            view = self._view(block, exists)
            new = exchange(self.rule, view, young, gone, aim, zeta, generator(self.seed, step, index, scope.name))
            if not torch.equal(new.sum(dim=1).cpu(), aim):
                raise StructureError(f"the event of step {step} missed its planned counts in {', '.join(block.names)}")
            scatter(block, new, self._masks)

    def _view(self, block: Block, exists: Tensor) -> View:
        zeros = {name: torch.zeros_like(self._parameters[name], dtype=torch.float32) for name in block.names}
        return View(
            weight=gather(block, {name: self._parameters[name].detach().float() for name in block.names}),
            exists=exists,
            saliency=gather(block, {**zeros, **self._memory.saliency}),
            gradient=gather(block, {**zeros, **self._memory.gradients()}),
        )

    def _planned(self, scope: Scope, step: int) -> dict[tuple[str, ...], Tensor]:
        """Connections after this event for each group of each block, while the density falls."""
        now = {name: int(m.sum()) for name, m in self._masks.items() if name not in self._dense}
        held = sum(self._masks[name].numel() for name in self._dense)
        density = self.rule.schedule.density(step, self.last_event, self.density)
        total = min(alloc.budget(density, self.possible) - held, sum(now.values()))
        if scope.name == "network":
            return {tuple(now): torch.tensor([total])}
        aim = self._allocate(density)
        after = alloc.shrink(now, {name: aim[name] for name in now}, total)
        if scope.name == "layer":
            return {(name,): torch.tensor([k]) for name, k in after.items()}
        rows = {name: self._masks[name].reshape(len(self._masks[name]), -1) for name in after}
        return {
            (name,): row_counts(k, rows[name].shape[1], rows[name].sum(dim=1).cpu(), strict=scope.strict)
            for name, k in after.items()
        }

    # --- details ----------------------------------------------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        rule = self.rule
        return {
            "rule": rule.name,
            "drop": rule.drops.name,
            "grow": rule.grows.name,
            "scope": asdict(rule.scope),
            "prune": rule.prune and asdict(rule.prune),
            "grace": rule.grace,
            "reselect": rule.reselect,
            "replaces_step": rule.replaces_step,
            "allocation": self.allocation,
            "dense": sorted(self._dense),
            "density": self.density,
            "sample": rule.grows.sample,
            "schedule": asdict(rule.schedule),
            "every": self.every,
            "until": self.until,
            "seed": self.seed,
        }

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        return {
            "masks": self._masks,
            "young": self._young,
            "ever": self._ever,
            "saliency": self._memory.saliency,
            "average": self._memory.average,
        }
