"""Self-distillation: a model learns to answer from mixed patches as it answers at full resolution. No labels needed.

The teacher is the model at full resolution; its answers, and how likely it found each token, are what the student is
to give under random settings. The loss is the Kullback-Leibler divergence of the student from the teacher, the mean
over the tokens of the answers.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from transformers_apt.training.agreement import Agreement, Exam, as_json, as_table, student_logits, what_got_worse
from transformers_apt.training.batches import Share, Step, steps_from
from transformers_apt.training.card import complete
from transformers_apt.training.files import read_json, replace
from transformers_apt.training.identity import identity_of, refuse_another
from transformers_apt.training.pairs import Pair, Pairs
from transformers_apt.training.students import STUDENTS
from transformers_apt.training.teacher import Answer, answer, divergence

if TYPE_CHECKING:
    from accelerate import Accelerator

SPLIT = ("FSDP", "DEEPSPEED", "MEGATRON_LM")
"""What `accelerate` calls the ways to split a model over processes."""

WARM_UP = 30
"""Steps in which the learning rate rises."""


class GotWorseError(RuntimeError):
    """Practice made the answers worse, so that nothing was saved."""


@dataclass(frozen=True)
class Plan:
    """How a model practises.

    Attributes:
        student: what of it: a name in `students.STUDENTS`.
        minutes, steps: how long, in minutes (those of earlier calls included) or steps, whichever is over first.
        batch: pairs of a step.
        views: how often each picture is read in a step, under other settings each time.
        lr: highest learning rate of AdamW; it rises for `WARM_UP` steps and then falls evenly to 3 %.
        max_new_tokens: where the teacher's answers are cut off.
        seed: of the settings, and of weights that begin at random.
        save_every: seconds between saved states.
        workers: processes that prepare pictures.
    """

    student: str = "branch"
    minutes: float = math.inf
    steps: float = math.inf
    batch: int = 16
    views: int = 2
    lr: float = 1e-3
    max_new_tokens: int = 32
    seed: int = 0
    save_every: float = 300
    workers: int = 1

    def __post_init__(self) -> None:
        if self.student not in STUDENTS:
            raise ValueError(f"student={self.student!r}: expected one of {list(STUDENTS)}")
        if math.isinf(self.minutes) and math.isinf(self.steps):
            raise ValueError("no end: expected minutes or steps")
        for name in ("minutes", "steps", "batch", "views", "lr", "max_new_tokens", "save_every"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected more than 0")
        if math.isinf(self.lr):
            raise ValueError(f"lr={self.lr}: expected a number, such as 1e-3")

    def lr_at(self, step: int, fraction: float) -> float:
        """The learning rate of a step, after `fraction` of the practice."""
        return self.lr * min(1.0, (step + 1) / WARM_UP) * max(0.03, 1 - fraction)

    @property
    def identity(self) -> dict[str, Any]:
        """What may not change between two calls that go on with each other."""
        return {name: getattr(self, name) for name in ("student", "batch", "views", "seed", "max_new_tokens")}


def make_accelerator() -> Accelerator:
    """`accelerate`'s, configured by its own command and files.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        from accelerate import Accelerator
    except ModuleNotFoundError as error:
        message = "practising needs accelerate: pip install 'transformers-apt[train]'"
        raise ModuleNotFoundError(message, name="accelerate") from error
    return Accelerator()


class Practice:
    """A model that practises, and the folder it is kept in.

    Args:
        accelerator: says on which devices, and in how many processes.
        model, processor: a checkpoint's, of a supported family. The model is changed: it gets what practises.
        pairs: what to practise on.
        held_out: what to judge by, not among `pairs`.
        plan: how.
        out: folder. `save` writes into it; the state, the log and the teacher's answers go into `out/practice`.

    Attributes:
        step, seconds: how far it has come, earlier calls included.

    Raises:
        ValueError: the folder is of another practice, the batch cannot be shared out, or the weights are split.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: Any,
        processor: Any,
        pairs: Pairs,
        held_out: Sequence[Pair],
        plan: Plan,
        out: Path,
    ) -> None:
        if accelerator.distributed_type in SPLIT:
            raise ValueError(
                f"accelerate is configured for {accelerator.distributed_type.value}, which splits the weights over "
                "processes; expected a whole model in each, because the teacher generates its answers. Choose one "
                "process, or several without it, in accelerate config"
            )
        if plan.batch % accelerator.num_processes:
            raise ValueError(
                f"a batch of {plan.batch} pairs for {accelerator.num_processes} processes: expected a multiple"
            )
        self.accelerator, self.processor, self.plan, self.out = accelerator, processor, plan, out
        self.pairs, self.student = pairs, STUDENTS[plan.student]
        self.folder, self.state = out / "practice", out / "practice" / "state.pt"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.step, self.seconds = 0, 0.0
        self._check_identity(model, held_out)
        torch.manual_seed(plan.seed)  # of the weights that begin at random, the same in every process
        model = self.student.begin(model.train(), processor)
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=plan.lr, weight_decay=0.0)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.device = accelerator.device
        with self.student.as_teacher(self.bare):
            self.exam = Exam.by(self.bare, processor, held_out, plan.max_new_tokens, plan.batch)
        if self.state.exists():
            self._load()
        self.before = self._before()

    @property
    def bare(self) -> Any:
        """The model itself, without what `accelerate` put around it."""
        return self.accelerator.unwrap_model(self.model)

    # ---------------------------------------------------------------- practice

    @property
    def fraction(self) -> float:
        """How much of the practice is done, 0 to 1; the same in every process."""
        done = max(self.step / self.plan.steps, self.seconds / (60 * self.plan.minutes))
        return float(self.accelerator.reduce(torch.tensor(done, device=self.device), "mean"))

    def run(self, progress: Any = None) -> None:
        """Practise until the plan is done, or until asked to end (SIGTERM, Ctrl-C); then save the state.

        Args:
            progress: a `tqdm` bar, in hundredths of the practice.
        """
        began, saved, share = time.monotonic() - self.seconds, time.monotonic(), self._share()
        with _ended() as ended:
            for found in steps_from(self.step, self.pairs, self.processor, share, self.plan.workers):
                fraction = self.fraction
                if progress is not None:
                    progress.update(round(100 * min(1.0, fraction), 2) - progress.n)
                if fraction >= 1 or self._any(bool(ended)):
                    break
                loss = self.learn(found, fraction)
                self.seconds = time.monotonic() - began
                self._log({"step": self.step, "seconds": round(self.seconds, 1), "loss": round(loss, 5)})
                if progress is not None:
                    progress.set_postfix_str(f"step {self.step}, loss {loss:.4f}", refresh=False)
                if self._any(time.monotonic() - saved > self.plan.save_every):
                    self.save_state()
                    saved = time.monotonic()
        self.save_state()
        if ended:
            raise KeyboardInterrupt

    def learn(self, found: Step, fraction: float) -> float:
        """One step, after `fraction` of the practice; the loss, over all processes.

        Raises:
            ValueError: the loss is no number.
        """
        answers = [taught for taught in self._answers(found) for _ in range(self.plan.views)]
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.lr_at(self.step, fraction)
        logits = student_logits(self.model, self.processor, found.students, answers, self.device)
        each = torch.cat([divergence(*pair) for pair in zip(logits, answers, strict=True)])
        count = self.accelerator.reduce(torch.tensor(float(len(each)), device=self.device), "sum")
        # processes average their gradients; the mean is meant over all tokens
        loss = each.sum() / count * self.accelerator.num_processes
        found_loss = float(self.accelerator.reduce(loss.detach(), "mean"))
        if not math.isfinite(found_loss):
            raise ValueError(
                f"the loss of step {self.step + 1} is {found_loss}: expected a number. A smaller learning rate or "
                f"another dtype may help; {self.folder} keeps what was saved last"
            )
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return found_loss

    def _answers(self, found: Step) -> list[Answer]:
        """The teacher's, asked where they are not known, and then kept."""
        asked: Iterator[Answer] = iter(())
        if found.teacher is not None:
            with self.student.as_teacher(self.bare):
                asked = iter(answer(self.bare, found.teacher.to(self.device), self.plan.max_new_tokens))
        answers = []
        for known, file in zip(found.known, found.keys, strict=True):
            answers.append(next(asked) if known is None else known)
            if known is None and file is not None:
                answers[-1].save(file)
        return answers

    def _share(self) -> Share:
        accelerator, plan = self.accelerator, self.plan
        share = (plan.batch, plan.views, accelerator.process_index, accelerator.num_processes, plan.seed)
        return Share(*share, self.folder / "answers")

    def _any(self, here: bool) -> bool:
        """Whether it is so in any process."""
        return bool(self.accelerator.reduce(torch.tensor(float(here), device=self.device), "sum") > 0)

    # ---------------------------------------------------------------- files

    def save_state(self) -> None:
        """What a later call goes on from. An interruption, or a full disk, leaves the one before."""
        model, optimizer = get_state_dict(self.model, self.optimizer.optimizer, options=_options())
        if self.accelerator.is_main_process:
            kept = {"model": model, "optimizer": optimizer, "step": self.step, "seconds": self.seconds}
            written = io.BytesIO()
            torch.save(kept, written)
            replace(self.state, written.getvalue())
        self.accelerator.wait_for_everyone()

    def _load(self) -> None:
        try:
            kept = torch.load(self.state, weights_only=True, map_location="cpu")
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"{self.state} is damaged ({error}); remove {self.folder} to begin anew") from error
        set_state_dict(
            self.model,
            self.optimizer.optimizer,
            model_state_dict=kept["model"],
            optim_state_dict=kept["optimizer"],
            options=_options(strict=False),  # what is frozen is not there
        )
        self.step, self.seconds = kept["step"], kept["seconds"]
        log = self.folder / "log.jsonl"
        if self.accelerator.is_main_process and log.exists():  # steps after the state are done again
            replace(log, "".join(log.read_text(encoding="utf-8").splitlines(keepends=True)[: self.step]))

    def _check_identity(self, model: Any, held_out: Sequence[Pair]) -> None:
        now, file = self.plan.identity | identity_of(model, held_out), self.folder / "plan.json"
        kept = read_json(file) if file.exists() else now
        self.accelerator.wait_for_everyone()
        refuse_another(now, kept, self.folder)
        if self.accelerator.is_main_process:
            replace(file, json.dumps(now, indent=1))

    def _log(self, record: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    # ---------------------------------------------------------------- judgement

    def agreement(self) -> dict[str, Agreement]:
        """How far the model agrees with its teacher on the held-out pairs, by setting."""
        return self.exam.take(self.bare, self.processor, self.plan.batch)

    def _before(self) -> dict[str, Agreement]:
        file = self.folder / "before.json"
        if file.exists():
            return {name: Agreement(**row) for name, row in read_json(file).items()}
        if self.step:
            raise ValueError(f"{file} is gone, and practice is under way: choose another folder, or begin anew")
        found = self.agreement()
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            replace(file, json.dumps(as_json(found), indent=1))
        return found

    def save(self, after: dict[str, Agreement]) -> None:
        """Write what has practised, and how far it agrees with its teacher.

        Raises:
            GotWorseError: it agrees less than before, so that nothing is written.
        """
        if self.accelerator.is_main_process:
            plan = {name: value for name, value in asdict(self.plan).items() if value != math.inf}
            report = {"before": as_json(self.before), "after": as_json(after), "plan": plan, "steps": self.step}
            replace(self.folder / "agreement.json", json.dumps(report, indent=1))
        worse = what_got_worse(self.before, after)
        if worse is not None:
            raise GotWorseError(
                f"nothing was saved, because on held-out images {worse}. More images, more minutes or a smaller "
                f"learning rate may help; {self.folder} keeps the state"
            )
        weights = self.accelerator.get_state_dict(self.model)  # of all processes together
        if self.accelerator.is_main_process:
            self.student.save(self.bare, self.out, weights)
            self._complete_card(after)
        self.accelerator.wait_for_everyone()

    def _complete_card(self, after: dict[str, Agreement]) -> None:
        """A branch's card says what was measured, where nobody else has written that."""
        card = self.out / "README.md"
        if card.exists():
            plan, table = self.plan, as_table(self.before, after)
            text = card.read_text(encoding="utf-8")
            replace(card, complete(text, steps=self.step, batch=plan.batch, views=plan.views, table=table))


def _options(strict: bool = True) -> StateDictOptions:
    return StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True, strict=strict)


@contextmanager
def _ended() -> Iterator[list[int]]:
    """While open, a list that SIGTERM and Ctrl-C are noted in, instead of ending the process."""
    found: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, frame: found.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield found
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
