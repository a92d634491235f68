"""The web page's layout: which part calls which piece of work. Needs gradio."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from loguru import logger

from apt_code.entropy_utils import IMPORTANCE_METHODS
from transformers_apt.app import text
from transformers_apt.app.examples import QUESTION, Example
from transformers_apt.app.fields import guard_fields, refusal
from transformers_apt.app.handlers import Look, Setting, UserError, Workbench, own_thresholds
from transformers_apt.app.numbers import is_number
from transformers_apt.app.requests import shown
from transformers_apt.app.server import KEPT, Drawings
from transformers_apt.models import settings as selection

HINT = "Drop a photo into the frame, or pick an example."
LOUPE = "Point at the picture: a loupe shows this place on both sides, with the model's own pixels."
MAPS = "Bright cells matter most, on one scale for all sizes. Grey cells stick out of the image and are always split."
BROKEN = "Something went wrong here. The server's log says what; the rest of the page still works."
LEFT = Setting(
    selection.RECOMMENDED[selection.METHOD],
    selection.RECOMMENDED["importance_method"],
    share=0.45,
    multiple=1.0,
    drop=f"{selection.RECOMMENDED['drop_tolerance']:g}",
)
RIGHT = Setting("off", "upsample_mse", share=0.5, multiple=1.0)
"""What is compared at first: the recommended setting beside upstream."""


@dataclass(frozen=True)
class Panel:
    """One setting's controls, and what they show."""

    controls: list[Any]
    shown: list[Any]


def build(bench: Workbench, examples: Sequence[Example], drawings: Drawings, model: str) -> gr.Blocks:
    """The page.

    Args:
        bench: does the work.
        examples: to pick from; the first is there from the start.
        drawings: keeps the pictures that the page shows.
        model: who answers, in words.
    """
    work = _Work(bench, drawings)
    first = examples[0] if examples else None
    with gr.Blocks(title=text.title(bench.family), analytics_enabled=False, delete_cache=(300, KEPT)) as page:
        gr.HTML(text.header(model, bench.family, bench.patch_size))
        with gr.Row():
            with gr.Column(min_width=300):
                photo = _photo_input(str(first.image) if first else None)
            with gr.Column(min_width=300):
                notice = gr.HTML(text.note(HINT), elem_id="notice")
                picks = gr.Dataset(
                    components=[gr.Image(visible=False, render=False)],
                    samples=[[str(example.image)] for example in examples],
                    type="index",
                    label="Examples",
                    visible=bool(examples),
                    elem_id="examples",
                )
                size = gr.Radio(
                    bench.shapes.labels,
                    value=bench.shapes.chosen,
                    label="Estimate the compute of",
                    info=f"An estimate from the checkpoint's shape, with {text.PROMPT_TOKENS} tokens of text.",
                    elem_id="size",
                )
        with gr.Row(elem_classes="apt-pair"):
            left, right = (_panel(name, start, bench.patch_size) for name, start in (("A", LEFT), ("B", RIGHT)))
        with gr.Row(equal_height=True):
            question = gr.Textbox(
                first.question if first else QUESTION,
                label="Ask about the photo",
                max_length=bench.limits.question,
                scale=4,
                min_width=220,
                elem_id="question",
            )
            ask = gr.Button("Ask both", variant="primary", scale=1, min_width=120, elem_id="ask")
        hint = gr.HTML(_right_answer(first), elem_id="hint")
        answers = []
        with gr.Row():
            for name in "AB":
                with gr.Column(min_width=300):
                    answer = gr.Textbox(label=f"Answer with setting {name}", lines=2, elem_id=f"answer-{name.lower()}")
                    answers += [answer, gr.HTML(elem_id=f"times-{name.lower()}")]

        drawing = {"concurrency_id": "drawing", "concurrency_limit": 1, "trigger_mode": "always_last"}
        everything = [photo, size, *left.controls, *right.controls]
        shown = [notice, *left.shown, *right.shown]
        gr.on([page.load, photo.change], work.show_both, everything, shown, api_name="photo", **drawing)
        size.change(work.show_both, everything, shown, api_visibility="private", **drawing)
        for name, panel in (("a", left), ("b", right)):
            method, importance, _, _, fine, coarse, *_ = panel.controls
            seen = [method, importance, fine, coarse]
            method.change(_visible_controls, seen, panel.controls[1:], queue=False, api_visibility="private")
            importance.change(work.fresh_thresholds, importance, [fine, coarse], queue=False, api_visibility="private")
            gr.on(
                [control.change for control in panel.controls],
                work.show_one,
                [photo, size, *panel.controls],
                panel.shown,
                api_name=f"setting_{name}",
                show_progress="minimal",
                **drawing,
            )
        gr.on(
            [ask.click, question.submit],
            work.answer,
            [photo, question, *left.controls, *right.controls],
            [hint, *answers],
            api_name="ask",
            concurrency_id="answering",
            concurrency_limit=1,
            trigger_mode="once",
        )

        def pick(place: int) -> tuple[str, str, str]:
            return str(examples[place].image), examples[place].question, _right_answer(examples[place])

        picks.click(pick, picks, [photo, question, hint], queue=False, api_visibility="private")
        gr.on([photo.upload, photo.clear], lambda: "", None, hint, queue=False, api_visibility="private")
    guard_fields(page)
    return page


def _photo_input(value: str | None) -> Any:
    """gradio's image input, which hands the uploaded file over unread: what is decoded, and how much, is ours to say.

    Overridden on the object, because gradio writes a stub file beside the source of every subclass.
    """
    photo: Any = gr.Image(
        value,
        label="Photo",
        type="filepath",
        sources=["upload", "clipboard"],
        height=300,
        buttons=["fullscreen"],
        elem_id="photo",
    )
    move = photo.async_move_resource_to_block_cache

    async def move_files_only(place: Any) -> str | None:
        if str(place or "").lower().startswith(("http:", "https:")):  # which gradio would fetch
            raise gr.Error("Only files can be looked at; upload the image.", print_exception=False)
        moved: str | None = await move(place)
        return moved

    photo.async_move_resource_to_block_cache = move_files_only
    # gradio has checked that the file lies in the upload folder
    photo.preprocess = lambda payload: None if payload is None else str(payload.path or "")
    return photo


def _panel(name: str, start: Setting, patch_size: int) -> Panel:
    """The controls of one setting above its figures and pictures."""
    prefix = name.lower()
    with gr.Column(min_width=300, elem_classes="apt-panel"):
        with gr.Column(elem_classes="apt-controls"):
            gr.HTML(f"<h2>Setting {name}</h2>")
            with gr.Row():
                method = gr.Dropdown(
                    list(text.METHODS), value=start.method, label="Method", min_width=200, elem_id=f"{prefix}-method"
                )
                importance = gr.Dropdown(
                    sorted(IMPORTANCE_METHODS),
                    value=start.importance,
                    label="Importance",
                    visible=start.method != selection.OFF,
                    min_width=200,
                    elem_id=f"{prefix}-importance",
                )
            share = gr.Slider(
                0,
                1,
                start.share,
                step=0.01,
                label=_share_label(start.method),
                visible=_reads_share(start.method),
                elem_id=f"{prefix}-share",
            )
            multiple = gr.Slider(
                0,
                2,
                start.multiple,
                step=0.05,
                label="alpha: threshold over mean importance (larger, fewer tokens)",
                visible=start.method == "v2",
                elem_id=f"{prefix}-multiple",
            )
            with gr.Row():
                thresholds = [
                    gr.Number(
                        **_threshold(place, start.importance, patch_size),
                        visible=_reads_thresholds(start.method),
                        min_width=140,
                        step=0.5,
                        elem_id=f"{prefix}-{name}",
                    )
                    for place, name in enumerate(("fine", "coarse"))
                ]
            with gr.Row():
                drop, predict = (
                    gr.Dropdown(
                        [(label, name) for name, label in choices.items()],
                        value=getattr(start, name),
                        label=label,
                        visible=start.method != selection.OFF,
                        min_width=200,
                        elem_id=f"{prefix}-{name}",
                    )
                    for name, choices, label in (
                        ("drop", text.DROPS, "Leave out plain cells that repeat their neighbour"),
                        ("predict", text.PREDICTS, "Leave out cells that a neighbour predicts"),
                    )
                )
            most = gr.Number(
                0,
                label="Most language tokens (0: no such limit)",
                visible=_reads_most(start.method),
                minimum=0,
                precision=0,
                elem_id=f"{prefix}-most",
            )
        facts = gr.HTML(elem_id=f"{prefix}-facts")
        with gr.Tabs():
            with gr.Tab("Tiling"):
                tiling = gr.Image(**_picture("Tiling", f"{prefix}-tiling"))
                legend = gr.HTML(elem_id=f"{prefix}-legend")
            with gr.Tab("Model's view"):
                seen = gr.Image(**_picture("The model's view", f"{prefix}-seen"))
                gr.HTML(text.note(LOUPE))
            with gr.Tab("Importance"):
                maps = gr.Gallery(
                    show_label=False, columns=2, object_fit="contain", height=600, buttons=[], elem_classes="apt-maps"
                )
                gr.HTML(text.note(MAPS))
    return Panel(
        [method, importance, share, multiple, *thresholds, drop, predict, most], [facts, legend, tiling, seen, maps]
    )


def _picture(label: str, name: str) -> dict[str, Any]:
    return {
        "label": label,
        "show_label": False,
        "type": "filepath",
        "interactive": False,
        "buttons": ["fullscreen"],
        "elem_id": name,
        "elem_classes": "apt-picture",
    }


def _threshold(place: int, importance: str, patch_size: int) -> dict[str, Any]:
    """One of `v1`'s thresholds: at first the map's own, which is also what an emptied field means."""
    own = own_thresholds(importance)[place]
    label = f"Whole below, {patch_size * (2, 4)[place]} px ({IMPORTANCE_METHODS[importance].unit})"
    return {"value": own, "label": label, "placeholder": f"{own:g}"}


def _visible_controls(method: str, importance: str, *thresholds: float | None) -> tuple[Any, ...]:
    """Importance, the alpha, thresholds or limit that the method reads, and what is left out."""
    for given in thresholds:
        if given is not None and not is_number(given):
            raise refusal(f"thresholds holds numbers, got {shown(given)}.")
    own = own_thresholds(importance)
    return (
        gr.Dropdown(visible=method != selection.OFF),
        gr.Slider(visible=_reads_share(method), label=_share_label(method)),
        gr.Slider(visible=method == "v2"),
        # a field that comes into sight empty would show, and send, 0
        *(
            gr.Number(own[place] if given is None else given, visible=_reads_thresholds(method))
            for place, given in enumerate(thresholds)
        ),
        *(gr.Dropdown(visible=method != selection.OFF) for _ in range(2)),
        gr.Number(visible=_reads_most(method)),
    )


def _reads_share(method: str) -> bool:
    return method != "v2" and "alpha" in selection.USED_BY[method]


def _share_label(method: str) -> str:
    of = "language tokens allowed" if method == selection.FIT else "patches to keep"
    return f"alpha: share of the {of}"


def _reads_thresholds(method: str) -> bool:
    return "thresholds" in selection.USED_BY[method]


def _reads_most(method: str) -> bool:
    return "max_language_tokens" in selection.USED_BY[method]


def _right_answer(example: Example | None) -> str:
    return text.right_answer(example.question, example.answer) if example and example.answer else ""


class _Work:
    """The events' functions: plain values in, what the page's parts show out."""

    def __init__(self, bench: Workbench, drawings: Drawings) -> None:
        self.bench = bench
        self.drawings = drawings

    def show_both(self, path: str | None, model: str, *controls: Any) -> list[Any]:
        """For a new photo: what was taken in, or what is wrong with it, and both settings."""
        if path is None:
            return [text.note(HINT), *_nothing(""), *_nothing("")]
        photo, sentence = _guarded(lambda: self.bench.photo(path))
        if photo is None:
            return [text.error(sentence), *_nothing(""), *_nothing("")]
        half = len(controls) // 2
        shown = [self.show_one(path, model, *part) for part in (controls[:half], controls[half:])]
        return [text.describe_photo(photo, self.bench.limit), *shown[0], *shown[1]]

    def fresh_thresholds(self, importance: str) -> tuple[Any, Any]:
        """For another map, whose unit is another one."""
        fine, coarse = (gr.Number(**_threshold(place, importance, self.bench.patch_size)) for place in range(2))
        return fine, coarse

    def show_one(self, path: str | None, model: str, *controls: Any) -> list[Any]:
        """One setting's figures and pictures."""
        if path is None:
            return _nothing("")
        setting = _setting(controls)
        look, sentence = _guarded(lambda: self.bench.look(path, setting))
        return _nothing(text.error(sentence)) if look is None else self._shown(look, model, setting.of(path))

    def answer(self, path: str | None, question: str, *controls: Any) -> Iterator[list[Any]]:
        """Both settings' answers as they come."""
        half = len(controls) // 2
        settings = [_setting(controls[:half]), _setting(controls[half:])]
        shown: list[Any] = [gr.skip(), "", "", "", ""]
        answers = self.bench.ask(path, question, settings)
        while True:
            piece, sentence = _guarded(lambda: next(answers, None))
            if sentence:
                yield [text.error(sentence), *shown[1:]]
            if piece is None:
                return
            place, answer = piece
            times = text.belonging_to(settings[place].of(path), text.describe_answer(answer), question)
            shown[1 + 2 * place : 3 + 2 * place] = answer.text, times
            yield shown

    def _shown(self, look: Look, model: str, of: str) -> list[Any]:
        save = self.drawings.save
        maps = [(save(picture), caption) for picture, caption in look.maps]
        return [
            text.belonging_to(of, text.facts(look, model, self.bench.shapes)),
            text.legend(look),
            save(look.tiling),
            save(look.seen),
            maps,
        ]


def _setting(controls: Sequence[Any]) -> Setting:
    method, importance, share, multiple, fine, coarse, drop, predict, most = controls
    return Setting(method, importance, share, multiple, (fine, coarse), drop, predict, most)


def _nothing(message: str) -> list[Any]:
    return [message, "", None, None, None]


def _guarded(work: Callable[[], Any]) -> tuple[Any, str]:
    """`(result, "")`, or `(None, a sentence for the visitor)`; what was not foreseen goes to the log."""
    try:
        return work(), ""
    except UserError as error:
        return None, str(error)
    except Exception:
        logger.exception("the web page failed")
        return None, BROKEN
