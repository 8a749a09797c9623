"""The loop of every training: steps, averages of weights, checkpoints, logs and pictures.

Everything that happens at a step follows from (seed, step): a training that was killed and started again ends in the
weights of one that was not. It runs in this process or in the workers of Ray Train, where `torch.distributed` is set
up already; the first worker writes. It does not know kinds, and it prints nothing.
"""

import copy
import functools
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from segdatagen.errors import SegdatagenError, UsageError
from segdatagen.images import encode_image
from segdatagen.lease import Holder, Lease
from segdatagen.peak_memory import reset_peak
from segdatagen.records import derive_seed
from segdatagen.storage import Folder
from segdatagen.training.boards import Boards
from segdatagen.training.checkpoints import (
    CHECKPOINTS_NAME,
    Checkpoint,
    collect,
    newest_step,
    open_newest,
    places_of,
    restore,
    save_checkpoint,
)
from segdatagen.training.data import Batch, Order, Share, batch_of_step
from segdatagen.training.kind import Kind, Progress, Summary, TrainingProgress, TrainingResult, Validated
from segdatagen.training.loss_log import LossLog
from segdatagen.training.options import TrainingOptions
from segdatagen.training.speed import Speedometer
from segdatagen.training.workers import Workers

REPORT_EVERY = 10
"""Steps between reports; losses stay on the device until then, and workers agree on stopping."""
SAMPLES_NAME = "samples"
BEGUN = ".begun"
"""Behind the name of a picture that is being drawn, or over which a training ended."""
BEGUN_LINE = b"begun, and not finished\n"
PICTURE_TRIES = 2
"""What was killed for another reason is drawn by the next attempt; what takes more memory than there is dies again."""


def train_loop(kind: Kind, share: Share, device: torch.device, progress: Progress, command: str) -> TrainingResult:
    """Train from the newest checkpoint in `out` to the last step, or until `max_hours` are over.

    All workers call it with their share; the first one holds the lease of `out`. Raises UsageError where `out` holds
    another training, LeaseError where another process trains into it, and SegdatagenError where the loss is no longer
    a number.
    """
    return Loop(kind, share, device, progress, command).run()


class Loop:
    """One worker's state of a training."""

    def __init__(self, kind: Kind, share: Share, device: torch.device, progress: Progress, command: str) -> None:
        options = kind.options
        if options.torch_threads is not None:
            torch.set_num_threads(options.torch_threads)
        self._kind, self._options, self._share, self._device = kind, options, share, device
        self._progress, self._command = progress, command
        self._folder = Folder(options.out)
        self._workers = Workers(share, device)
        self._lease = Lease(self._folder, _wait_quietly) if self._workers.is_first else None
        self._checkpoints = self._folder.child(CHECKPOINTS_NAME)
        self._log = LossLog(self._folder)
        self._facts = facts_of(kind)
        self._network = build_network(kind, device)
        self._average = copy.deepcopy(self._network).requires_grad_(False).eval()
        # Fused, because its step counts live on the device: others would wait for the device once per tensor.
        self._optimizer = torch.optim.AdamW(self._network.parameters(), lr=options.learning_rate, fused=True)
        loss = _Loss(kind, self._network)
        # A step without labels leaves the layers of the mask without gradient, on all workers alike.
        self._loss: nn.Module = (
            DistributedDataParallel(loss, find_unused_parameters=True, gradient_as_bucket_view=True)
            if share.num_workers > 1
            else loss
        )
        self._autocast = options.precision == "bf16" or (options.precision == "auto" and device.type == "cuda")
        self._pending: list[Tensor] = []
        self._speedometer = Speedometer(options.batch_size, device, share.num_workers)
        self._speed = "not measured"
        self._seconds_before = 0.0
        self._passed_over: tuple[int, ...] = ()
        self._began = time.monotonic()

    def run(self) -> TrainingResult:
        """Resume, train, and write what the last step leaves, as the only one that writes into `out`."""
        if self._lease is None:
            return self._run()
        self._folder.require_writable()
        with self._lease:
            return self._run()

    def _run(self) -> TrainingResult:
        options = self._options
        step = first_step = self._resume()
        self._boards = [Boards(self._folder, step)] if self._workers.is_first else []
        if self._lease is not None and step and self._is_drawn(step):
            self._make_up_for(step)
        stop = False
        reset_peak()
        self._speedometer.begin()
        while step < options.steps and not stop:
            self._speedometer.step(functools.partial(self._train_step, step))
            step += 1
            last = step == options.steps
            due, drawn = step % options.checkpoint_every == 0 or last, self._is_drawn(step)
            if due or drawn or step % REPORT_EVERY == 0:
                stop = self._report(step)
            if self._lease is not None and (due or drawn or stop):
                self._lease.check()
                self._require_numbers(step)
                if due or stop:
                    self._write(step)
                if drawn:
                    self._put_picture(step)
                    self._validate(step)
                self._speedometer.begin()
        result = TrainingResult(options.out, step, options.steps, self._log.loss, self._seconds(), None)
        result = replace(result, passed_over=self._passed_over, first_step=first_step)
        if step == options.steps and self._workers.is_first:
            summary = self._summary(step)
            saved = self._kind.save(self._average, summary)
            figures = {**saved.figures, **summary.validation}
            result = replace(result, seconds=self._seconds(), weights=saved.uri, figures=figures)
        for board in self._boards:
            board.close()
        return result

    def _is_drawn(self, step: int) -> bool:
        return step % self._options.sample_every == 0 or step == self._options.steps

    def _make_up_for(self, step: int) -> None:
        """Draw and measure what an attempt that ended behind its checkpoint has left."""
        if not self._folder.child(SAMPLES_NAME).exists(_picture_name(step)):
            self._put_picture(step)
        if step not in self._log.validation:
            self._validate(step)

    def _train_step(self, step: int) -> None:
        options = self._options
        order = Order(options.seed, options.batch_size, options.flip)
        parts = options.accumulate
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate_at(options, step)
        self._optimizer.zero_grad(set_to_none=True)
        losses = []
        for part in range(parts):
            share = Share(self._share.rank * parts + part, self._share.num_workers * parts)
            batch = batch_of_step(self._kind.data, order, step, share, self._device)
            with self._gradients_stay_here(part + 1 < parts):
                with self._lower_precision():
                    loss = self._loss(batch) / parts
                loss.backward()
            losses.append(loss.detach().float())
        if options.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self._network.parameters(), options.max_grad_norm)
        self._optimizer.step()
        update_average(self._average, self._network, options.ema_decay if step >= options.ema_start else 0.0)
        self._pending.append(torch.stack(losses).sum())

    def _lower_precision(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast)

    def _gradients_stay_here(self, wanted: bool) -> AbstractContextManager[Any]:
        """Within it workers do not average gradients: the last part of a batch does it for all."""
        return self._loss.no_sync() if wanted and isinstance(self._loss, DistributedDataParallel) else nullcontext()

    def _report(self, step: int) -> bool:
        """Log the losses since the last report, as means over the workers; True where it is time to stop."""
        hours = self._options.max_hours
        late = self._workers.is_first and hours is not None and time.monotonic() - self._began > hours * 3600
        figures = self._workers.mean(torch.stack([*self._pending, torch.tensor(float(late), device=self._device)]))
        losses: list[float] = figures[:-1].tolist()
        agreed = bool(figures[-1] > 0)
        first = step - len(losses) + 1
        rates = [learning_rate_at(self._options, first - 1 + place) for place in range(len(losses))]
        speed = self._speedometer.lap()
        self._speed = speed.as_text()
        numbers = list(itertools.takewhile(math.isfinite, losses))
        self._log.add(first, numbers, rates[: len(numbers)], self._seconds(), speed)
        if len(numbers) < len(losses):
            if self._workers.is_first:
                self._log.put()
            raise self._no_number(f"the loss of step {first + len(numbers)} is {losses[len(numbers)]}")
        if self._workers.is_first:
            loss, pace = sum(losses) / len(losses), speed.images_per_second
            steps_per_second = pace / self._options.batch_size
            found = TrainingProgress(step, self._options.steps, loss, steps_per_second, pace)
            self._progress(replace(found, passed_over=self._passed_over))
        for board in self._boards:
            scalars = {"loss": losses[-1], "learning_rate": rates[-1], "images_per_second": speed.images_per_second}
            board.add(step, scalars)
        self._pending.clear()
        return agreed

    def _no_number(self, what: str) -> SegdatagenError:
        kept = newest_step(self._checkpoints)
        then = (
            f"starts anew in {self._folder.uri}" if kept is None else f"goes on from step {kept} of {self._folder.uri}"
        )
        return SegdatagenError(f"{what}: lower learning_rate, and the same command {then}")

    def _resume(self) -> int:
        """The step to go on from, on all workers: 0, or that of the newest checkpoint that the first one can read.

        The others need not see `out`: they have everything from the first.
        """
        with open_newest(self._checkpoints) if self._workers.is_first else nullcontext() as checkpoint:
            found = None if checkpoint is None else [checkpoint.step, checkpoint.facts, sorted(checkpoint.tensors)]
            require_one_training(self._workers.all_say(self._facts))
            found = self._workers.first_says(found)
            if found is None:
                return 0
            step, facts, names = found
            require_same_training(facts, self._facts, self._options.out)
            if step > self._options.steps:
                raise UsageError(
                    f"{self._options.out}: this training has done {step} steps already, more than the "
                    f"{self._options.steps} asked for: raise steps or choose another out"
                )
            places = places_of(names, self._network, self._average, self._optimizer)
            stored = None if checkpoint is None else checkpoint.tensors
            restore(places, stored, self._workers.take_from_first)
        self._seconds_before, self._speed = float(facts["seconds"]), str(facts["speed"])
        if checkpoint is not None:
            self._passed_over = checkpoint.passed_over
            self._log.resume(step)
        return int(step)

    def _write(self, step: int) -> None:
        """Log first: rows beyond the newest checkpoint are dropped on resume, missing rows would be lost."""
        self._log.put()
        tensors = collect(self._network, self._average, self._optimizer)
        checkpoint = Checkpoint(step, tensors, self._facts | {"seconds": self._seconds(), "speed": self._speed})
        save_checkpoint(self._checkpoints, checkpoint, self._options.keep_checkpoints)

    def _require_numbers(self, step: int) -> None:
        """Raise SegdatagenError for weights that are none, which a step whose loss is a number may leave."""
        for name, parameter in self._network.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise self._no_number(f"after step {step} the weights {name} are no numbers")

    def _put_picture(self, step: int) -> None:
        """Draw and put a grid, while the others wait. One over which two attempts died would be the end of each."""
        samples, name = self._folder.child(SAMPLES_NAME), _picture_name(step)
        tries = samples.read(name + BEGUN).count(b"\n") if samples.exists(name + BEGUN) else 0
        if tries == PICTURE_TRIES:
            return
        samples.put(name + BEGUN, BEGUN_LINE * (tries + 1))
        with self._lower_precision():
            picture = self._kind.picture(self._average)
        samples.put(name, encode_image(picture, "png"))
        samples.delete([name + BEGUN])

    def _validate(self, step: int) -> None:
        """Measure and log the loss on other sources, where the kind can and the options name some."""
        if not isinstance(self._kind, Validated):
            return
        with self._lower_precision():
            loss = self._kind.validation_loss(self._average)
        if loss is None:
            return
        self._log.validation[step] = loss
        self._log.put()
        for board in self._boards:
            board.add(step, {"validation_loss": loss})

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._began

    def _summary(self, step: int) -> Summary:
        return Summary(
            command=self._command,
            data_fingerprint=self._facts["data"],
            num_images=self._kind.data.num_sources,
            steps=step,
            seconds=self._seconds(),
            loss=self._log.loss,
            speed=self._speed,
            num_workers=self._share.num_workers,
            precision="bf16" if self._autocast else "fp32",
            validation_loss=self._log.validation.get(step),
        )


def _picture_name(step: int) -> str:
    return f"step-{step:08d}.png"


def _wait_quietly(holder: Holder) -> None:
    """Nobody hears of a lease that is looked at: half a minute at most, beside the start of a training."""


class _Loss(nn.Module):
    """The loss as a module, so that `DistributedDataParallel` sees one forward pass."""

    def __init__(self, kind: Kind, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._kind = kind

    def forward(self, batch: Batch) -> Tensor:
        return self._kind.loss(self.network, batch)


def build_network(kind: Kind, device: torch.device) -> nn.Module:
    """The network of step 0: the same for a seed on every device and worker, in the memory format of the options."""
    options = kind.options
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(options.seed, "train", "network"))
        network = kind.build()
    memory_format = torch.channels_last if options.channels_last else torch.contiguous_format
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)
    return network.to(device)


def learning_rate_at(options: TrainingOptions, step: int) -> float:
    """Learning rate of a step, counted from 0: linear warm-up, then constant or a half-cosine down to 0."""
    if step < options.warmup_steps:
        return options.learning_rate * (step + 1) / options.warmup_steps
    if options.learning_rate_schedule == "constant":
        return options.learning_rate
    after = (step - options.warmup_steps) / max(1, options.steps - 1 - options.warmup_steps)
    return options.learning_rate * (1 + math.cos(math.pi * after)) / 2


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """`average = decay * average + (1 - decay) * network` for parameters; buffers are copied. Decay 0 copies."""
    for kept, new in zip(average.parameters(), network.parameters(), strict=True):
        if decay:
            kept.lerp_(new, 1 - decay)
        else:
            kept.copy_(new)
    for kept_buffer, new_buffer in zip(average.buffers(), network.buffers(), strict=True):
        kept_buffer.copy_(new_buffer)


def facts_of(kind: Kind) -> dict[str, Any]:
    """What a resumed training must have in common with its checkpoint."""
    fixed = kind.options.model_dump(mode="json", include=set(kind.options.fixed))
    data = kind.data.fingerprint(kind.reads_captions)
    return {"kind": kind.name, "data": data, "fixed": fixed, "frozen": dict(kind.frozen)}


def require_same_training(found: dict[str, Any], wanted: dict[str, Any], out: str) -> None:
    """Raise UsageError, naming the differences, unless a checkpoint belongs to this training."""
    differences = list(_differences(found, wanted))
    if differences:
        raise UsageError(
            f"{out}: another training is here ({'; '.join(differences)}): choose another out, or set it back"
        )


def require_one_training(facts: Sequence[dict[str, Any]]) -> None:
    """Raise UsageError, naming the differences, where a worker trains something else than the first one does."""
    for number, found in enumerate(facts):
        if differences := list(_differences(found, facts[0])):
            raise UsageError(
                f"worker {number} of {len(facts)} does not train what the first one does ({'; '.join(differences)}): "
                "give addresses that mean the same on every machine"
            )


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> Iterator[str]:
    if found["kind"] != wanted["kind"]:
        yield f"its kind is {found['kind']}, not {wanted['kind']}"
        return
    if found["data"] != wanted["data"]:
        yield "its images, masks or captions are others"
    for name in sorted(found["fixed"].keys() | wanted["fixed"].keys()):
        before, now = found["fixed"].get(name), wanted["fixed"].get(name)
        if before != now:
            yield f"its {name} is {before}, not {now}"
    before, now = found.get("frozen", {}), wanted["frozen"]
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            yield f"its {name} was another" if name in before else f"it had no {name}"
