"""Ask a question about each of many images, with adaptive patches, on all machines of a Ray cluster or on this one.

    python examples/batch_ray.py photos answers --model Qwen/Qwen2.5-VL-7B-Instruct --prompt "Describe this image."
    python examples/batch_ray.py photos answers --prompts questions.jsonl --actors 8

Needs the extra `ray`. Ray Data hands batches to actors, each of which holds the model: in vLLM where that is
installed, in transformers elsewhere. OUTPUT gets Parquet files with the columns `image`, `prompt`, `answer`,
`prompt_tokens` and `error`. The same command again does what is missing. A file that cannot be read gets an error and
stops nothing.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from transformers_apt import demo_model_path
from transformers_apt.cli.messages import CHECKPOINT, OneLineErrors, check_model, complain, fail
from transformers_apt.cli.visualize import number_or_off

ENGINES = ("auto", "vllm", "transformers")
DTYPES = ("auto", "float32", "bfloat16", "float16")
COLUMNS = ("image", "prompt", "answer", "prompt_tokens", "error")

ROWS_OF_A_FILE = 256
"""A job that is killed loses fewer answers than this."""

MOST_BLOCKS = 4096
"""Ray Data keeps a record of each block, so a long job has longer ones."""

Row = dict[str, Any]

console = Console(stderr=True, emoji=False)


@dataclass(frozen=True)
class Job:
    """What an actor has to know.

    Attributes:
        folder: what images are relative to.
        model: folder or hub id of a checkpoint.
        engine: `'vllm'` or `'transformers'`.
        settings: of adaptive patches.
        max_new_tokens: of an answer.
        dtype: of the weights; `'auto'` for bfloat16 on an accelerator and float32 on a CPU.
        vllm_options: more arguments of `vllm.LLM`.
    """

    folder: Path
    model: str
    engine: str
    settings: dict[str, Any]
    max_new_tokens: int
    dtype: str
    vllm_options: dict[str, Any]

    @property
    def makes_answers(self) -> Row:
        """What two runs into one folder have to share."""
        return {"model": self.model, "settings": self.settings, "max_new_tokens": self.max_new_tokens}


# ---------------------------------------------------------------- in an actor


class WithTransformers:
    """The model in transformers. Answers are greedy."""

    def __init__(self, job: Job) -> None:
        import torch

        import transformers_apt
        from transformers_apt.embedded.asking import load_checkpoint

        transformers_apt.apply()
        device, dtype = _place(job.dtype)
        self.model, self.processor = load_checkpoint(job.model, device, dtype)
        self.processor.tokenizer.padding_side = "left"
        self.job, self.no_grad = job, torch.no_grad

    def __call__(self, images: Sequence[Any], prompts: Sequence[str]) -> list[tuple[str, int]]:
        """The answer and the length of the prompt in tokens, for each."""
        chats = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}] for prompt in prompts
        ]
        texts = [
            self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats
        ]
        inputs = self.processor(
            images=list(images), text=texts, images_kwargs=self.job.settings, padding=True, return_tensors="pt"
        ).to(self.model.device)
        with self.no_grad():
            output = self.model.generate(**inputs, max_new_tokens=self.job.max_new_tokens, do_sample=False)
        answers = self.processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return list(zip(answers, inputs["attention_mask"].sum(1).tolist(), strict=True))


class WithVllm:
    """The model in vLLM. Answers are greedy."""

    def __init__(self, job: Job) -> None:
        from vllm import LLM, SamplingParams

        self.llm = LLM(
            job.model,
            dtype=_place(job.dtype)[1],
            limit_mm_per_prompt={"image": 1, "video": 0},
            mm_processor_kwargs={"images_kwargs": job.settings},
            **job.vllm_options,
        )
        self.sampling = SamplingParams(temperature=0, max_tokens=job.max_new_tokens)

    def __call__(self, images: Sequence[Any], prompts: Sequence[str]) -> list[tuple[str, int]]:
        """As `WithTransformers`."""
        contents = [
            [{"type": "image_pil", "image_pil": image}, {"type": "text", "text": prompt}]
            for image, prompt in zip(images, prompts, strict=True)
        ]
        chats = [[{"role": "user", "content": content}] for content in contents]
        outputs = self.llm.chat(chats, self.sampling, use_tqdm=False)
        return [(output.outputs[0].text, len(output.prompt_token_ids)) for output in outputs]


def _place(dtype: str) -> tuple[str, str]:
    """The device of this process, and the type of the weights."""
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if dtype == "auto":
        dtype = "float32" if accelerator is None else "bfloat16"
    return accelerator.type if accelerator else "cpu", dtype


class Reader:
    """The actor: holds the model, and answers batches."""

    def __init__(self, job: Job) -> None:
        self.folder = job.folder
        self.ask = {"vllm": WithVllm, "transformers": WithTransformers}[job.engine](job)

    def __call__(self, batch: Any) -> Any:
        """A table with the columns `image` and `prompt` -> one with all `COLUMNS`."""
        return table_of(answer_rows(self.ask, self.folder, batch.to_pylist()))


def answer_rows(ask: Callable[..., list[tuple[str, int]]], folder: Path, rows: Iterable[Row]) -> list[Row]:
    """An answer or an error for each row, whatever becomes of the others.

    Args:
        ask: an engine.
        folder: what the rows' images are relative to.
        rows: with `image` and `prompt`.

    Raises:
        Exception: what is no matter of one image, such as an engine that died. The job ends there.
    """
    import torch

    from transformers_apt.models.image_files import load_photo

    found, loaded = [], []
    for row in rows:
        found.append(dict.fromkeys(COLUMNS) | row)
        try:
            loaded.append((found[-1], load_photo(folder / row["image"])))
        except Exception as error:  # a broken file can make its decoder fail in any way
            found[-1]["error"] = in_words(error)

    def fill(pairs: Sequence[tuple[Row, Any]]) -> None:
        answers = ask([image for _, image in pairs], [row["prompt"] for row, _ in pairs])
        for (row, _), (answer, tokens) in zip(pairs, answers, strict=True):
            row |= {"answer": answer, "prompt_tokens": tokens}

    of_one_image = (OSError, TypeError, ValueError, torch.OutOfMemoryError)
    try:
        if loaded:
            fill(loaded)
    except of_one_image:  # which of them it was shows when each is asked alone
        for pair in loaded:
            try:
                fill([pair])
            except of_one_image as error:
                pair[0]["error"] = in_words(error)
    return found


def in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def table_of(rows: Sequence[Row]) -> Any:
    """The rows with the output's columns and types, also where a column holds nothing."""
    import pyarrow

    types = {name: pyarrow.int64() if name == "prompt_tokens" else pyarrow.string() for name in COLUMNS}
    return pyarrow.Table.from_pylist(list(rows), schema=pyarrow.schema(list(types.items())))


# ---------------------------------------------------------------- the job


def start_ray(address: str | None, verbose: bool) -> None:
    """Join the cluster, or start one on this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told of this job unless somebody says so
    import ray

    level = logging.INFO if verbose else logging.ERROR
    ray.init(address, include_dashboard=False if address is None else None, log_to_driver=verbose, logging_level=level)
    ray.data.DataContext.get_current().enable_progress_bars = False  # the one below counts images
    logging.getLogger("ray.data").setLevel(level)  # after the line above, which sets its loggers up


def actors_of(count: int, cpus: float, gpus: float | None, address: str | None) -> dict[str, Any]:
    """What `map_batches` wants to know of the actors.

    Raises:
        ValueError: they do not fit on this machine, so that Ray would wait forever.
    """
    import ray

    there = ray.cluster_resources()
    each = {"CPU": cpus, "GPU": gpus if gpus is not None else float(there.get("GPU", 0) > 0)}
    for name, number in each.items():
        if address is None and number * count > there.get(name, 0):
            raise ValueError(
                f"{count} actors of {number:g} {name} each do not fit on this machine with {there.get(name, 0):g}; "
                f"pass fewer --actors or a smaller --{name.lower()}s-per-actor"
            )
    return {"compute": ray.data.ActorPoolStrategy(size=count), "num_cpus": each["CPU"], "num_gpus": each["GPU"]}


def run(rows: list[Row], job: Job, output: Path, batch_size: int, actors: dict[str, Any]) -> int:
    """Answer the rows with Ray Data, and write what is done as it comes. Returns how many got an error."""
    import ray
    from batch_files import add

    blocks = min(math.ceil(len(rows) / batch_size), MOST_BLOCKS)
    answers = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
        Reader, fn_constructor_args=(job,), batch_size=batch_size, batch_format="pyarrow", **actors
    )
    waiting: list[Any] = []
    failed = 0
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[failed]} failed"),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=len(rows), failed=0)
        try:
            for batch in answers.iter_batches(batch_size=None, batch_format="pyarrow"):
                waiting.append(batch)
                failed += len(batch) - batch["error"].null_count
                progress.update(bar, advance=len(batch), failed=failed)
                if sum(map(len, waiting)) >= ROWS_OF_A_FILE:
                    add(waiting, output)
                    waiting = []
        finally:  # also when the job ends early: what is done is done
            if waiting:
                add(waiting, output)
    return failed


def settings_of(options: dict[str, Any]) -> dict[str, Any]:
    """The settings among the options. Where no method is named, they change what the package recommends.

    Raises:
        TypeError, ValueError: one cannot be used, or has no effect.
    """
    from transformers_apt.models.settings import ASKS_FOR, DEFAULTS, FIT, METHOD, RECOMMENDED, USED_BY, check_selection

    given = {name: options[name] for name in DEFAULTS if options.get(name) is not None}
    if METHOD not in given:
        asks_for_fit = any(ASKS_FOR.get(name) == FIT for name in given)
        given = ({METHOD: FIT} if asks_for_fit else dict(RECOMMENDED)) | given
    check_selection(**given)
    for name in given.keys() - USED_BY[given[METHOD]] - {METHOD}:
        raise ValueError(f"{name}={given[name]!r} has no effect with {METHOD}={given[METHOD]!r}; leave it out")
    return given


app = typer.Typer(add_completion=False)


@app.command(cls=OneLineErrors)
def main(
    context: typer.Context,
    images: Annotated[Path, typer.Argument(help="Folder of images, with the folders in it.")],
    output: Annotated[Path, typer.Argument(help="Folder for the answers, as Parquet files.")],
    model: Annotated[str | None, typer.Option(help=f"{CHECKPOINT}.", show_default="the embedded one")] = None,
    prompt: Annotated[str | None, typer.Option(help="What to ask about every image.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Parquet or JSONL with the columns 'image', relative to IMAGES, and 'prompt': only these."),
    ] = None,
    engine: Annotated[str, typer.Option(help="'vllm', 'transformers', or 'auto': vLLM where installed.")] = "auto",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 128,
    patch_selection_method: Annotated[
        str | None,
        typer.Option(help="'v1', 'v2', 'budget', 'joint', 'fit' or 'off'.", show_default="the recommended setting"),
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Of v2, budget, joint and fit.")] = None,
    importance_method: Annotated[
        str | None, typer.Option(help="'entropy', 'laplacian', 'upsample_l4' or 'upsample_mse'.")
    ] = None,
    thresholds: Annotated[tuple[float, float] | None, typer.Option(help="Of v1 and fit.")] = None,
    drop_tolerance: Annotated[
        Any, typer.Option(parser=number_or_off, metavar="NUMBER", help="Grey levels, or 'off'.")
    ] = None,
    predict_tolerance: Annotated[
        Any, typer.Option(parser=number_or_off, metavar="NUMBER", help="Grey levels, or 'off'.")
    ] = None,
    max_language_tokens: Annotated[int | None, typer.Option(help="For fit: the most of an image.")] = None,
    actors: Annotated[int, typer.Option(min=1, help="How many hold the model.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that an actor is given at once.")] = 16,
    cpus_per_actor: Annotated[float, typer.Option(min=0)] = 1,
    gpus_per_actor: Annotated[float | None, typer.Option(min=0, show_default="1 where there are any")] = None,
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster, or 'auto'.", show_default="this machine")
    ] = None,
    dtype: Annotated[str, typer.Option(help="'auto', 'float32', 'bfloat16' or 'float16'.")] = "auto",
    vllm_options: Annotated[
        Any, typer.Option(parser=json.loads, metavar="JSON", help="More arguments of vllm.LLM.", show_default="{}")
    ] = None,
    retry_errors: Annotated[bool, typer.Option(help="Try the images again that got an error.")] = False,
    verbose: Annotated[bool, typer.Option(help="Print what Ray and the actors say.")] = False,
) -> None:
    """Ask a question about each of many images. The same command again does what is missing.

    Exit code 2 when an option cannot be used, 1 when the job broke off.
    """
    check_model(model)
    if importlib.util.find_spec("ray") is None:
        raise fail("Ray is not installed; it comes with the extra: pip install '.[ray]'")
    from batch_files import images_in, missing, open_output, read_output, rows_of

    try:
        for name, value, known in (("engine", engine, ENGINES), ("dtype", dtype, DTYPES)):
            if value not in known:
                raise ValueError(f"--{name} {value}: expected one of {', '.join(known)}")
        if engine == "auto":
            engine = "vllm" if importlib.util.find_spec("vllm") else "transformers"
        if vllm_options is not None and (engine != "vllm" or not isinstance(vllm_options, dict)):
            raise ValueError(f"--vllm-options {vllm_options!r}: expected a JSON object, and vLLM as the engine")
        settings = settings_of(context.params)
        job = Job(
            images.resolve(),
            model or str(demo_model_path()),
            engine,
            settings,
            max_new_tokens,
            dtype,
            vllm_options or {},
        )
        if prompts is None and prompt is None:
            raise ValueError("nothing to ask; pass --prompt, or --prompts with a file")
        rows = (
            rows_of(prompts, prompt) if prompts else [{"image": name, "prompt": prompt} for name in images_in(images)]
        )
        open_output(output, job.makes_answers)
        done = read_output(output, forget_errors=retry_errors)
        left = missing(rows, done)
        if left:
            start_ray(address, verbose)
            placed = actors_of(actors, cpus_per_actor, gpus_per_actor, address)
    except (OSError, TypeError, ValueError) as error:
        raise fail(error) from error
    try:
        failed = run(left, job, output, batch_size, placed) if left else 0
    except Exception as error:
        complain(
            "[red]broken off:[/red]", f"{error}. What was done is in {output}; the same command goes on from there"
        )
        raise typer.Exit(1) from error
    print(f"{len(left) - failed} answered, {failed} failed, {len(done)} were there -> {output}")


if __name__ == "__main__":
    app()
