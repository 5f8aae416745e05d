"""`fit`: one training, from a recipe to a run folder. The loop reads from top to bottom; there are no hidden events."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from regraft.data import Augmentation, plain_batches, training_batches
from regraft.distill import NetworkTeacher, Remembered
from regraft.errors import Interrupted, RunError, TrainingError
from regraft.execution import described, execute, restored
from regraft.training import records
from regraft.training.build import Parts, arithmetic, assemble, augmentation_of, check, device_of, teacher_recipe
from regraft.training.checkpoint import FOLDER as CHECKPOINTS
from regraft.training.checkpoint import newest_checkpoint, read_manifest, save_checkpoint
from regraft.training.clock import Clock
from regraft.training.evaluate import Evaluation, combined, evaluate, reestimate, warn_of_silence
from regraft.training.load import load, save
from regraft.training.ranks import Ranks, joined
from regraft.training.recipe import Recipe
from regraft.training.result import finish, trained_teacher
from regraft.training.run import RunFolder, finished, frames, held, refuse_another, refuse_finished, refuse_unfinished
from regraft.training.state import Position, capture, restore, same_precision, same_threads
from regraft.training.step import forward, update
from regraft.training.stopping import Stop

Watch = Callable[[dict[str, Any]], None]
REESTIMATE = 50  # batches at most
EVALUATE = 256  # samples in a batch


def fit(
    recipe: Recipe,
    folder: str | Path | None = None,
    *,
    teacher_run: str | Path | None = None,
    resume: bool = False,
    save_every: float = 120.0,
    watch: Watch = lambda record: None,
    command: str | None = None,
) -> dict[str, Any]:
    """Train what the recipe says and write everything to `folder` (`runs/<name>` unless given).

    Where the recipe asks for a `sparse` or `undertrained` teacher, that one is trained first, into `folder/teacher`,
    unless it is finished there already or `teacher_run` names its run.

    Ctrl-C and SIGTERM end it after the step at hand, which is saved. Whatever ended a run, `resume` goes on with it
    to the same bits, on the same machine with the same number of threads. Under `torchrun` several processes train
    one network, each on its share of every batch, and the first one writes.

    Args:
        resume: go on with the unfinished run of this recipe in `folder`; start if there is none.
        save_every: seconds of training from one checkpoint to the next; each epoch ends with one too.
        watch: is called with each record of the log as it is written.
        command: what to print as the way to reproduce this run.

    Returns:
        The content of `result.json`.

    Raises:
        UsageError, ShapeError, StructureError: whatever cannot be meant or does not fit, before the folder is made.
        RunError: the folder holds a finished run, an unfinished one (without `resume`), or a damaged one, is in use by
            another process, or cannot be written.
        TrainingError: the loss is not finite, or another process of the run has ended; what was saved stays.
        Interrupted: a signal came; what was saved stays.
    """
    folder = Path(folder or Path("runs") / recipe.name)
    with joined() as ranks:
        ranks.first_does(partial(_may_use, folder, recipe, resume))
        parts, teacher_run = _with_teacher(recipe, folder, teacher_run, resume, save_every, watch, ranks)
        training = _Training(recipe, parts, RunFolder(folder, writes=ranks.first), ranks, save_every, watch)
        with held(folder) if ranks.first else nullcontext():
            try:
                with Stop() as stop:
                    training.begin_or_go_on(resume)
                    while training.at.epoch <= training.epochs:
                        training.epoch(stop)
                        with stop.saved():
                            training.close_epoch()
                    with stop.saved():
                        result = training.finish(teacher_run, command)
            except Interrupted as interrupted:
                raise training.stopped(interrupted.signal, command) from None
            return result


class _Training:
    """The loop's state: the parts of a training and where it stands."""

    def __init__(
        self, recipe: Recipe, parts: Parts, run: RunFolder, ranks: Ranks, save_every: float, watch: Watch
    ) -> None:
        self.recipe, self.parts, self.run, self.ranks, self.watch = recipe, parts, run, ranks, watch
        self.epochs = recipe.training.stop or recipe.training.epochs
        self.at = Position()
        self.valid: Evaluation | None = None
        self._sums = records.Sums()
        self._clock = Clock(save_every)
        self._saved = -1  # step of the last checkpoint
        self._over: set[str] | None = None  # layers that go over their connections, once that is known
        self._augment = augmentation_of(recipe, parts.data)
        self._born = {name: mask.clone() for name, mask in parts.topology.masks.items()}
        self._frames = frames(parts.topology.every, parts.topology.last_event)
        self._batches()  # a batch that so many processes cannot share is refused here

    def begin_or_go_on(self, resume: bool) -> None:
        """Start the run folder, or read the newest checkpoint."""
        parts, run = self.parts, self.run
        self.ranks.seed_apart(self.recipe.seed)
        checkpoint = self.ranks.first_does(partial(newest_checkpoint, run.path)) if resume else None
        if checkpoint is None:
            parts.precision, table = self.ranks.first_does(lambda: (parts.precision, parts.execution.calibration))
            parts.execution.use(table)
            self.ranks.first_does(partial(run.begin, self.recipe, parts.precision, described(table)))
            first = next(iter(parts.topology.masks))
            run.born(first, parts.model.get_parameter(first))
            run.map(0, dict(parts.topology.masks))
            self._log(records.birth(parts))
        else:
            if checkpoint[1].get("recipe_hash") != self.recipe.hash:
                raise RunError(
                    f"{run.path / CHECKPOINTS}: the checkpoint does not fit this recipe: it is of another one"
                )
            same_threads(checkpoint[1])
            parts.precision = same_precision(checkpoint[1])
            parts.execution.use(restored(checkpoint[1].get("calibration")))
            self.at, self._sums.rows = restore(parts, *checkpoint, self.ranks)
            self._check_position()
            self._clock.seconds = self.at.seconds
            self.ranks.first_does(self._go_on)
            density = parts.topology.connections / parts.topology.possible
            events = len(parts.topology.events)
            self._tell({"kind": "resume", "step": self.at.step, "density": density, "events": events})
        with self._clock:
            self._remember_teacher()
        self._network = self.ranks.wrap(parts.model)

    def _remember_teacher(self) -> None:
        """Where samples never change, a fixed teacher sees each of them once, in an order that is always the same."""
        teacher, train = self.parts.criterion.teacher, self.parts.data.train
        if isinstance(teacher, NetworkTeacher) and teacher.forward is None and self._augment in (None, Augmentation()):
            with arithmetic(device_of(self.recipe), self.parts.precision):
                axis = 0 if self.parts.data.form.static else 1
                teacher.forward = Remembered(teacher.model, (x for x, _ in plain_batches(train, EVALUATE)), axis)

    def _go_on(self) -> None:
        """Take the run folder back to the checkpoint; the network chosen so far must be there at the end."""
        if self.at.best >= 0:
            read_manifest(self.run.path / "best.safetensors")
        self.run.go_on(self.at.step, self.at.log_bytes, self.at.log_sha256)

    def _check_position(self) -> None:
        """Raise `RunError` unless epoch, batch and step are of one moment, and the sums reach up to it."""
        at, rows = self.at, self._sums.rows
        batches = self.parts.steps // self.recipe.training.epochs
        shape = (0, 0) if rows is None else tuple(rows.shape)
        expected = (at.index, len(records.Sums.NAMES)) if at.index else (0, 0)
        if at.epoch > self.epochs or at.step != (at.epoch - 1) * batches + at.index or not at.index <= batches:
            raise RunError(f"the checkpoint does not fit this recipe: step {at.step} is not in epoch {at.epoch}")
        if shape != expected:
            raise RunError(f"the checkpoint does not fit this recipe: sums of {list(shape)} at batch {at.index}")

    def epoch(self, stop: Stop) -> None:
        """Train from where it stands to the end of the epoch. Raises `Interrupted` once a step is done and saved."""
        parts, at, network = self.parts, self.at, self._network
        topology, criterion = parts.topology, parts.criterion
        network.train()
        with self._clock:
            for x, y in self._batches():
                logits, loss = forward(parts, network, x, y)
                self._tell_of_paths()
                diverged, stopping, due = self.ranks.any(
                    not bool(loss.isfinite()), stop.asked is not None, self._clock.due
                )
                if diverged:
                    raise self._diverged(float(loss.detach()), f"step {at.step + 1} (epoch {at.epoch})")
                update(parts, network, loss, self.recipe.training.clip)
                at.step, at.index = at.step + 1, at.index + 1
                criterion.update(parts.model, at.step)
                self._sums.add(loss, logits, y, criterion.parts)
                if topology.events and topology.events[-1].step == at.step:
                    self._log(records.event(parts, self._born))
                    if at.step in self._frames:
                        self.run.map(at.step, dict(topology.masks))
                if stopping or due:
                    self.save()
                if stopping:
                    raise Interrupted(stop.asked or signal.SIGTERM)
        if self._saved != at.step:
            self.save()

    def _tell_of_paths(self) -> None:
        """Which layers go over their connections, whenever that changes, and why the others do not."""
        over = {name for name, why in self.parts.execution.choices.items() if not why}
        topology = self.parts.topology
        if over != self._over and topology.connections < topology.possible:
            self._tell({"kind": "paths", "step": self.at.step, "choices": self.parts.execution.choices})
        self._over = over

    def close_epoch(self) -> None:
        """Evaluate on the validation split, log, and write the network as it is."""
        parts, at, recipe, ranks = self.parts, self.at, self.recipe, self.ranks
        last = at.epoch == self.epochs
        ranks.align(parts.model)
        if last and ranks.first:
            batch = recipe.data.batch
            again = training_batches(parts.data.train, batch, seed=recipe.seed, epoch=at.epoch, augment=None)
            with arithmetic(device_of(recipe), parts.precision):
                reestimate(parts.model, islice(again, REESTIMATE))
        if last:
            ranks.align(parts.model)
        self.valid = self._validate()
        if self.valid and not math.isfinite(self.valid.loss):
            raise self._diverged(self.valid.loss, f"the validation after epoch {at.epoch}")
        self._log(records.epoch(at, parts, self._sums.means(ranks), self.valid))
        if ranks.first:
            at.silent = warn_of_silence(self.valid, at.silent)
        manifest = {"epoch": at.epoch, "step": at.step, "steps": parts.steps, "recipe_hash": recipe.hash}
        manifest["precision"] = parts.precision
        manifest["data"] = asdict(parts.data.form)
        # An epoch counts only once the wiring is final: a denser network's accuracy would stand beside its price.
        reached = self.valid.accuracy if self.valid else 0.0
        chosen = (reached >= at.best and at.step >= parts.topology.last_event) or (last and at.best < 0)
        for name in ["last", *["best"] * chosen] if ranks.first else []:
            save(self.run.path / f"{name}.safetensors", parts.model, parts.topology, manifest)
        at.best = reached if chosen else at.best
        self.run.write_maps()
        self._sums = records.Sums()
        at.epoch, at.index = at.epoch + 1, 0

    def finish(self, teacher_run: Path | None, command: str | None) -> dict[str, Any]:
        """Measure, and write the result."""
        recipe, parts, seconds = self.recipe, self.parts, self._clock.seconds
        return self.ranks.first_does(lambda: finish(self.run, recipe, parts, seconds, self.valid, teacher_run, command))

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of the batches of the epoch that are still to come."""
        return training_batches(
            self.parts.data.train,
            self.recipe.data.batch,
            seed=self.recipe.seed,
            epoch=self.at.epoch,
            augment=self._augment,
            start=self.at.index,
            part=(self.ranks.rank, self.ranks.world),
        )

    def save(self) -> None:
        """A checkpoint of where it stands."""
        self.run.write_maps()
        self.at.seconds, self.at.log_bytes = self._clock.seconds, self.run.log_bytes()
        self.at.log_sha256 = self.run.log_sha256()
        tensors, manifest = capture(self.parts, self.at, self._sums.rows, self.ranks)
        if self.run.writes:
            save_checkpoint(self.run.path, self.at.step, tensors, {"recipe_hash": self.recipe.hash, **manifest})
        self._saved = self.at.step
        self._clock.begin_wait()

    def stopped(self, number: int, command: str | None) -> Interrupted:
        """What to say when a signal has ended the run."""
        by = signal.Signals(number).name
        go_on = "fit(..., resume=True)" if command is None else f"{command.removesuffix(' --resume')} --resume"
        step = f"step {self.at.step} of {self.parts.steps}"
        return Interrupted(number, f"{self.run.path} stopped by {by} at {step}, which is saved. Go on with: {go_on}")

    def _validate(self) -> Evaluation | None:
        """The validation split, each rank on its share of the batches."""
        ranks, split = self.ranks, self.parts.data.valid
        if not len(split):
            return None
        own = None
        if ranks.rank * EVALUATE < len(split):
            with arithmetic(device_of(self.recipe), self.parts.precision):
                share = plain_batches(split, EVALUATE, part=(ranks.rank, ranks.world))
                own = evaluate(self.parts.model, share, rates=True)
        return combined([found for found in ranks.gather(own) if found is not None])

    def _diverged(self, loss: float, where: str) -> TrainingError:
        done = self.at.epoch - 1
        kept = f"Epoch {done} is saved" if done else "No epoch was finished yet"
        return TrainingError(
            f"the loss is {loss} at {where} of {self.run.path}: lower training.lr or set training.clip. {kept}"
        )

    def _log(self, record: dict[str, Any]) -> None:
        self.run.log(record)
        self._tell(record)

    def _tell(self, record: dict[str, Any]) -> None:
        if self.ranks.first:
            self.watch({"run": self.recipe.name, **record})


def _may_use(folder: Path, recipe: Recipe, resume: bool) -> None:
    """Whether this run may be trained in `folder`. Raises `RunError` or `UsageError`."""
    refuse_finished(folder)
    if resume:
        refuse_another(folder, recipe)
    else:
        refuse_unfinished(folder)


def _with_teacher(
    recipe: Recipe,
    folder: Path,
    teacher_run: str | Path | None,
    resume: bool,
    save_every: float,
    watch: Watch,
    ranks: Ranks,
) -> tuple[Parts, Path | None]:
    """The parts of the training, and the run of its trained teacher, which is trained now where there is none."""
    first = teacher_recipe(recipe)
    if recipe.distill.teacher == "network":
        teacher_run = recipe.distill.run
    elif first is not None and teacher_run is None:
        check(recipe)  # whatever cannot be meant shall show before minutes of training
        teacher_run = folder / "teacher"
        if not ranks.first_does(partial(finished, teacher_run, first)):
            fit(first, teacher_run, resume=resume, save_every=save_every, watch=watch)
    if teacher_run is None:
        return assemble(recipe), None
    trained_teacher(Path(teacher_run))  # it will stand beside the student: what is missing there shall show now
    taught_by = load(teacher_run)
    teacher = taught_by.model.to(device_of(recipe))
    execute(teacher, taught_by.topology)
    return assemble(recipe, teacher), Path(teacher_run)
