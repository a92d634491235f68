"""The web page's words, figures and colours, as HTML. What comes from a visitor is escaped."""

from __future__ import annotations

from html import escape

from apt_code.patch_layout import MERGE_SIZE, PatchLayout
from apt_code.visualization import DROPPED_COLOUR, PATCH_COLOURS
from transformers_apt.app import handlers
from transformers_apt.app.handlers import Look, Photo
from transformers_apt.app.model import Answer
from transformers_apt.app.shapes import Shapes
from transformers_apt.models.families import series_of
from transformers_apt.models.flops import Shape, image_flops, prefill_flops

PROMPT_TOKENS = 32
"""Of text beside the image's tokens, in the estimate of the prefill: chat template and a short question."""

METHODS = (
    ("fit: share of language tokens", "fit"),
    ("budget: share of patches", "budget"),
    ("joint: fewer tokens too", "joint"),
    ("v1: fixed thresholds", "v1"),
    ("v2: relative threshold", "v2"),
    ("off: upstream", "off"),
)

_WITHIN = {"off": "no", "0": "if equal", "1": "within 1 grey level"}
DROPS = {name: _WITHIN.get(name, f"within {name} grey levels") for name in handlers.DROPS}
DROPS["2"] = "within 2 (recommended)"  # the field has no room for more
PREDICTS = {name: _WITHIN.get(name, f"within {name} grey levels") for name in handlers.PREDICTS}

CSS = """
.gradio-container { width: min(1240px, 100%) !important; max-width: none !important; min-width: 0 !important;
  margin: 0 auto !important; }
.gradio-container main { width: 100%; }
.apt-head h1 { font-size: 1.6rem; margin: 0 0 .3rem; }
.apt-head p, .apt-note { color: var(--body-text-color); opacity: .78; }
.apt-head p { margin: 0 0 .2rem; max-width: 60rem; }
.apt-note { font-size: .9rem; margin: .3rem 0; }
.apt-panel h2 { font-size: 1.1rem; margin: 0; }
.apt-controls { gap: .5rem; }
/* controls, figures and pictures of both settings begin at the same height, whatever one of them has to say */
@media (min-width: 700px) {
  .apt-pair { display: grid !important; grid-template-columns: 1fr 1fr; row-gap: .5rem; }
  .apt-panel { display: grid !important; grid-row: span 3; grid-template-rows: subgrid; min-width: 0 !important;
    align-items: start; }
}
.apt-stale { opacity: .35; }
[id^="times-"].apt-stale::after { content: "This answers another photo, setting or question."; }
.apt-maps .caption-label { display: none; }
.apt-loupe { position: fixed; z-index: 1000; display: none; pointer-events: none; border: 2px solid #fff; margin: -2px;
  border-radius: .3rem; box-shadow: 0 0 0 1px #000, 0 2px 8px #0008; background-repeat: no-repeat;
  background-color: #000; image-rendering: pixelated; }
.apt-facts { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 0 !important; }
.apt-facts, .apt-facts tr, .apt-facts td { border: 0 !important; background: none !important; }
.apt-facts td { padding: .2rem .4rem !important; white-space: nowrap; }
.apt-facts td:first-child { padding-left: 0 !important; white-space: normal; }
.apt-facts td.number, .apt-facts td.share { text-align: right; }
.apt-facts td.share { font-weight: 600; width: 3.6rem; }
.apt-facts td.bar { width: 26%; padding-right: 0 !important; }
.apt-facts tr.main td { font-size: 1.15rem; }
.apt-bar { height: .6rem; border-radius: .3rem; background: var(--border-color-primary); overflow: hidden; }
.apt-bar i { display: block; height: 100%; background: var(--primary-500); }
@media (max-width: 1100px) { .apt-facts td.bar { display: none; } }
@media (max-width: 500px) { .apt-facts tr.main td { font-size: 1rem; } }
.apt-error { border-left: 4px solid #d33; padding: .5rem .75rem; background: #d3333318; border-radius: .25rem; }
.apt-legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .95rem; }
.apt-legend i { display: inline-block; width: .85rem; height: .85rem; margin-right: .4rem; vertical-align: -.1rem;
  border: 1px solid #0008; }
.apt-picture img { max-height: 30rem; object-fit: contain !important; }
"""


def title(family: str) -> str:
    """Of the page, for a model of this family."""
    return f"Adaptive patches for {series_of(family)}"


def header(model: str, family: str, patch_size: int) -> str:
    """The top of the page.

    Args:
        model: who answers, in words.
        family: of that model.
        patch_size: of its image processor.
    """
    fine, middle, coarse = (patch_size * size for size in (1, 2, 4))
    return (
        f'<div class="apt-head"><h1>{title(family)}</h1><p>Detailed regions keep {fine}-pixel patches, plain regions '
        f"become {middle}- or {coarse}-pixel patches, and empty ones can be left out. The vision tower reads one "
        "token per patch, the language model "
        f"one per {middle}-pixel cell or {coarse}-pixel patch.</p><p>Answers come from {escape(model)}.</p></div>"
    )


def describe_photo(photo: Photo, limit: str) -> str:
    """What was taken in, and to how much it is resized at most."""
    resized = f"{photo.resized.width} × {photo.resized.height} px"
    size = f"{photo.size[0]} × {photo.size[1]} px"
    text = f"<b>{escape(photo.name)}</b>, {size}. The model gets {resized} ({escape(limit)})."
    return f'<p class="apt-note">{text}</p>'


def error(message: object) -> str:
    """One sentence that stands out."""
    return f'<div class="apt-error" role="alert">{escape(str(message))}</div>'


def note(message: str) -> str:
    """One quiet sentence."""
    return f'<p class="apt-note">{escape(message)}</p>'


def facts(look: Look, name: str, shapes: Shapes) -> str:
    """Tokens, estimated compute, and what there is to say about the setting.

    Args:
        look: what a setting made of a photo.
        name: of the model to estimate, one of `shapes`.
        shapes: the page's models.
    """
    layout, shape, label = look.view.layout, shapes.by_name[name], shapes.label(name)
    everything = PatchLayout.uniform(look.view.upstream_grid)
    full, full_tokens = everything.num_patches, everything.num_language_tokens
    tokens = layout.num_language_tokens
    rows = [
        _row("Vision patches", layout.num_patches, full, main=True),
        _row("Language tokens", tokens, full_tokens, main=True),
        _compute(f"Vision tower ({label})", image_flops(layout, shape), image_flops(everything, shape)),
        _compute(f"Prefill ({label})", _prefill(tokens, shape), _prefill(full_tokens, shape)),
    ]  # fmt: skip
    notes = [note(text) for text in look.view.notes]
    return f'<table class="apt-facts">{"".join(rows)}</table>{"".join(notes)}'


def right_answer(question: str, answer: str) -> str:
    """Of an example; `page.js` greys it beside another question."""
    return f'<div data-question="{escape(question)}">{note(f"Right is: {answer}")}</div>'


def belonging_to(of: str, html: str, question: str | None = None) -> str:
    """What belongs to a setting of a photo, both in one word, and an answer's to its question.

    `page.js` greys an answer that is of others than those on the page.
    """
    asked = "" if question is None else f' data-question="{escape(question)}"'
    return f'<div data-of="{of}"{asked}>{html}</div>'


def legend(look: Look) -> str:
    """What the colours of the tiling mean, how many patches of each there are, and how many cells were left out."""
    layout = look.view.layout
    items = [
        f'<span><i style="background:rgb{PATCH_COLOURS[size]}"></i>'
        f"{size * look.view.patch_size} px: {layout.patches_by_size.get(size, 0):,}</span>"
        for size in sorted(layout.patches_by_size)
    ]
    if layout.dropped_cells:
        items.append(
            f'<span><i style="background:rgb{DROPPED_COLOUR}"></i>'
            f"left out: {layout.dropped_cells:,} cells of {MERGE_SIZE * look.view.patch_size} px</span>"
        )
    return f'<div class="apt-legend">{"".join(items)}</div>'


def describe_answer(answer: Answer) -> str:
    """Tokens and times of an answer, so far or in the end."""
    first = "…" if answer.first_token is None else _time(answer.first_token)
    rows = [
        ("Vision patches", f"{answer.vision_patches:,}"),
        ("Prompt tokens", f"{answer.prompt_tokens:,} (image: {answer.language_tokens:,})"),
        ("New tokens", f"{answer.new_tokens}{'' if answer.done else ' …'}"),
        ("Preprocessing", _time(answer.preprocessing)),
        ("First token after", first),
        ("In all", f"{_time(answer.total)}{'' if answer.done else ' …'}"),
    ]
    cells = "".join(f'<tr><td>{name}</td><td class="number">{value}</td></tr>' for name, value in rows)
    return f'<table class="apt-facts">{cells}</table>'


def _prefill(tokens: int, shape: Shape) -> float:
    return prefill_flops(tokens + PROMPT_TOKENS, shape)


def _time(milliseconds: float) -> str:
    return f"{milliseconds:.0f} ms" if milliseconds < 1e4 else f"{milliseconds / 1e3:.1f} s"


def _row(name: str, kept: float, full: float, main: bool = False) -> str:
    return _cells(name, f"{kept:,} of {full:,}", kept / full, main)


def _compute(name: str, kept: float, full: float) -> str:
    unit, divisor = ("TFLOPs", 1e12) if full >= 1e11 else ("GFLOPs", 1e9)
    return _cells(name, f"{kept / divisor:.2f} of {full / divisor:.2f} {unit}", kept / full, False)


def _cells(name: str, value: str, share: float, main: bool) -> str:
    percent = f"{share:.0%}"
    return (
        f'<tr{" class=main" if main else ""}><td>{name}</td><td class="number">{value}</td><td class="share">{percent}'
        f'</td><td class="bar"><div class="apt-bar"><i style="width:{percent}"></i></div></td></tr>'
    )
