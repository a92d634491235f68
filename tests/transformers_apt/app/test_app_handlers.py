"""The page's work without the page: what it shows is the processor's own, and what it refuses, in one sentence."""

import io
import itertools
import re
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from apt_code.visualization import to_picture
from transformers_apt.app import handlers as app_handlers
from transformers_apt.app import text as app_text
from transformers_apt.app.handlers import Limits, Setting, UserError, Workbench
from transformers_apt.app.shapes import Shapes
from transformers_apt.embedded import demo_model_path
from transformers_apt.models.families import NAMES
from transformers_apt.models.flops import PUBLISHED, image_flops, prefill_flops
from transformers_apt.visualizer.view import examine

HALF = Setting("budget", "entropy", share=0.5, multiple=1.0)
SETTINGS = [
    HALF,
    Setting("joint", "upsample_mse", 0.4, 1.0),
    Setting("v1", "entropy", 0.5, 1.0),
    Setting("v1", "upsample_mse", 0.5, 1.0, (36, 36)),
    Setting("v1", "upsample_mse", 0.5, 1.0, (36, 36), drop="8"),
    Setting("v2", "laplacian", 0.5, 0.8),
    Setting("off", "entropy", 0.5, 1.0),
]


@pytest.mark.every_family
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.method)
def test_a_look_is_what_the_processor_makes_of_the_photo_itself(bench, put, astronaut, setting):
    """Though the page keeps the resized photo and works on that."""
    large = astronaut.resize((1300, 1111))
    look = bench.look(put(large), setting)
    direct = examine(large, bench.image_processor, **setting.kwargs())
    assert look.view.resized.shape != (3, 1111, 1300)
    assert torch.equal(look.view.resized, direct.resized)
    assert torch.equal(look.view.layout.patches, direct.layout.patches)
    assert look.view.settings == direct.settings
    assert np.asarray(look.seen).shape == np.asarray(to_picture(direct.resized)).shape
    assert [caption.split(" px")[0] for _, caption in look.maps] == _sides(bench)


def _sides(bench):
    """Of the three sizes of patches, in pixels, as text."""
    patch_size = bench.answerer.model.config.vision_config.patch_size
    return [str(patch_size * size) for size in (1, 2, 4)]


@pytest.mark.every_family(moe=True)
def test_alpha_decides_the_count_and_the_page_says_it(bench, put, astronaut):
    path = put(astronaut)
    size = bench.shapes.labels[0][1]
    counts = {}
    for share in (0.2, 0.5, 1.0):
        look = bench.look(path, Setting("budget", "entropy", share, 1.0))
        counts[share] = look.view.layout.num_patches
        said = app_text.facts(look, size, bench.shapes)
        full, tokens = look.view.layout.grid[0] * look.view.layout.grid[1], look.view.layout.num_language_tokens
        assert f"{counts[share]:,} of {full:,}" in said and f"{tokens:,} of {full // 4:,}" in said
        shape = PUBLISHED[bench.family][size]
        tower = image_flops(look.view.layout, shape) / 1e12
        prefill = prefill_flops(tokens + app_text.PROMPT_TOKENS, shape) / 1e12
        assert f"{tower:.2f} of" in said and f"{prefill:.2f} of" in said and f"({size.upper()})" in said
        assert [int(side) for side in re.findall(r"(\d+) px:", app_text.legend(look))] == [
            bench.patch_size * kind for kind in sorted(look.view.layout.patches_by_size)
        ]
    assert counts[0.2] < counts[0.5] < counts[1.0] == full


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        (Setting("budget", "entropy", 1.5, 1.0), "alpha=1.5 with 'budget': expected 0 <= alpha <= 1"),
        (Setting("v2", "entropy", 0.5, -1.0), "alpha=-1.0 with 'v2'"),
        (Setting("v2", "entropy", 0.5, float("nan")), "alpha=nan"),
        (Setting("budget", "entropy", "0.5", 1.0), "alpha is a number, got '0.5'"),
        (Setting("v1", "entropy", 0.5, 1.0, ("3", None)), "thresholds holds numbers, got '3'"),
        (Setting("v1", "entropy", 0.5, 1.0, (None, float("nan"))), "thresholds=[3.0, nan] holds NaN"),
        (Setting("v1", "entropy", 0.5, 1.0, drop="3"), "drop='3': expected one of off, 0, 1, 2, 4, 8"),
        (Setting("v1", "entropy", 0.5, 1.0, drop=2), "drop=2: expected a name"),
        (Setting("v1", "entropy", 0.5, 1.0, predict="2"), "predict='2': expected one of off, 0, 4, 8, 20"),
        (Setting("v1", "entropy", 0.5, 1.0, (-5, None)), "A threshold of -5 keeps nothing whole; expected 0 or more."),
        (Setting("fit", "entropy", 0.5, 1.0, most=1.5), "max_language_tokens=1.5"),
        (Setting("best", "entropy", 0.5, 1.0), "patch_selection_method='best'"),
        (Setting("budget", "beauty", 0.5, 1.0), "importance_method='beauty'"),
    ],
)
def test_a_setting_out_of_range_is_one_sentence(bench, put, astronaut, setting, named):
    with pytest.raises(UserError, match=re.escape(named)):
        bench.look(put(astronaut), setting)


def test_thresholds_are_read_by_v1_alone_and_an_empty_one_is_the_maps_own():
    recommended = {
        "patch_selection_method": "v1",
        "importance_method": "upsample_mse",
        "thresholds": [36, 36],
        "drop_tolerance": "off",
        "predict_tolerance": "off",
    }
    assert Setting("v1", "upsample_mse", 0.5, 1.0, (36, 36)).kwargs() == recommended
    assert Setting("v1", "upsample_mse", 0.5, 1.0, (36, None)).kwargs()["thresholds"] == [36, 16]
    assert Setting("v1", "entropy", 0.5, 1.0, (None, 0)).kwargs()["thresholds"] == [3, 0]
    assert Setting("v1", "entropy", 0.5, 1.0).kwargs()["thresholds"] is None
    for method in ("budget", "joint", "v2", "off"):
        assert "thresholds" not in Setting(method, "entropy", 0.5, 1.0, ("no number", 36)).kwargs()


def test_fit_keeps_to_a_number_of_tokens(bench, put, astronaut):
    path = put(astronaut)
    tokens = [
        bench.look(path, Setting("fit", "upsample_mse", 1.0, 1.0, most=most)).view.layout.num_language_tokens
        for most in (None, 0, 40.0)
    ]
    assert tokens[0] == tokens[1] > 40 >= tokens[2]
    assert "max_language_tokens" not in Setting("v1", "entropy", 0.5, 1.0, most=40).kwargs()


def test_the_limit_that_holds_is_named(answerer, uploads, monkeypatch):
    size = dict(answerer.processor.image_processor.size)
    for own, allowed, said in (
        (
            1_003_520,
            2_000_000,
            "at most 1.0 megapixels, the limit of this model's files; released Qwen2-VL checkpoints",
        ),
        (12_845_056, 2_000_000, "at most 2.0 megapixels, this page's limit (--max-resized-megapixels); the model's"),
    ):
        monkeypatch.setattr(answerer.processor.image_processor, "size", {**size, "longest_edge": own})
        bench = Workbench(answerer, Limits(resized_pixels=allowed), (uploads,))
        assert bench.limit.startswith(said)
        assert bench.image_processor.size["longest_edge"] == min(own, allowed)


def test_what_is_left_out_is_counted_and_shown(bench, put, astronaut):
    picture = astronaut.resize((280, 280))
    picture.paste("white", (0, 0, 140, 280))
    path, tolerances = put(picture), {}
    for drop in ("off", "0", "8"):
        setting = Setting("v1", "upsample_mse", 0.5, 1.0, (36, 36), drop)
        look = bench.look(path, setting)
        tolerances[drop] = setting.kwargs()["drop_tolerance"], look.view.settings["drop_tolerance"]
        cells = look.view.layout.dropped_cells
        assert bool(cells) == (drop != "off")
        assert (f"left out: {cells:,} cells of {2 * bench.patch_size} px" in app_text.legend(look)) == bool(cells)
        white = np.asarray(look.seen)[:, : 2 * bench.patch_size]
        assert white.min() == 255, "what is left out is shown in the colour of its root"
    assert tolerances == {"off": ("off", None), "0": (0, 0.0), "8": (8, 8.0)}
    predicted = Setting("v1", "upsample_mse", 0.5, 1.0, (36, 36), "off", "0")
    look = bench.look(path, predicted)
    assert predicted.kwargs()["predict_tolerance"] == look.view.settings["predict_tolerance"] == 0
    assert look.view.layout.dropped_cells and look.view.settings["drop_tolerance"] is None
    assert not {"drop_tolerance", "predict_tolerance"} & Setting("off", "entropy", 0.5, 1.0, drop="2").kwargs().keys()


def _claims_to_be(width, height):
    """A PNG of a few bytes that says it is very large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    body = [struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def _truncated(picture):
    file = io.BytesIO()
    picture.save(file, "JPEG")
    return file.getvalue()[: file.tell() // 2]


BAD = {
    "text.png": (lambda _: b"no image at all", "cannot be read as an image"),
    "cut.jpg": (_truncated, "cannot be read as an image"),
    "empty.png": (lambda _: b"", "cannot be read as an image"),
    "bomb.png": (lambda _: _claims_to_be(12_000, 12_000), "12000×12000 px: expected at most 2 megapixels"),
    "heavy.png": (lambda _: b"x" * 4_000_000, "has 3.8 MB; the limit is 2.9 MB"),
    "thin.png": (lambda _: _thin(), "aspect ratio"),
    "script.eps": (
        lambda _: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "cannot be",
    ),
}


def _thin():
    file = io.BytesIO()
    Image.new("RGB", (1, 600)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_sentence_that_tells_no_path(bench, put, astronaut, name):
    make, named = BAD[name]
    path = put(make(astronaut), name)
    with pytest.raises(UserError, match=re.escape(named)) as caught:
        bench.photo(path)
    assert name in str(caught.value) and str(bench.folders[0]) not in str(caught.value)
    assert str(caught.value).count("\n") == 0 and str(caught.value).endswith(".")


def test_only_files_of_the_upload_folder_are_read(bench, uploads, tmp_path, astronaut):
    secret = tmp_path / "secret.png"
    astronaut.save(secret)
    (uploads / "link.png").symlink_to(secret)
    (uploads / "folder").symlink_to(tmp_path)
    for path in (secret, uploads / ".." / "secret.png", uploads / "link.png", uploads / "folder" / "secret.png"):
        with pytest.raises(UserError, match="was not uploaded here"):
            bench.photo(str(path))
        with pytest.raises(UserError, match="was not uploaded here"):
            list(bench.ask(str(path), "What?", [HALF]))
    with pytest.raises(UserError, match="no longer on the server"):
        bench.photo(str(uploads / "gone.png"))
    with pytest.raises(UserError, match="Choose a photo"):
        bench.photo(None)


def test_a_phones_photo_stands_upright(bench, put, astronaut):
    exif = Image.Exif()
    exif[274] = 6  # to be turned by a quarter
    photo = bench.photo(put(astronaut.resize((400, 200)), "turned.jpg", exif=exif))
    assert photo.size == (200, 400) and photo.resized.height > photo.resized.width


def test_memory_of_photos_is_bounded(bench, put, astronaut, monkeypatch):
    monkeypatch.setattr(app_handlers, "REMEMBERED", 2)
    for seed in range(5):
        bench.photo(put(astronaut.resize((60 + seed, 60)), f"{seed}.png"))
    assert len(bench._photos) == 2


def test_pixels_after_the_resize_are_bounded(bench, put, astronaut):
    resized = bench.photo(put(astronaut.resize((1400, 1400)))).resized
    assert resized.width * resized.height <= app_handlers.Limits().resized_pixels < 1400 * 1400


def _said(answers):
    """`{place: last answer}`."""
    return dict(answers)


@pytest.mark.every_family
def test_both_answers_are_the_models_own(bench, put, astronaut):
    path = put(astronaut.resize((280, 224)))
    settings = [HALF, Setting("off", "entropy", 0.5, 1.0)]
    pieces = list(bench.ask(path, "  What is this? ", settings))
    processor, model = bench.answerer.processor, bench.answerer.model
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    for place, setting in enumerate(settings):
        mine = [answer for where, answer in pieces if where == place]
        last = mine[-1]
        inputs = processor(
            images=astronaut.resize((280, 224)), text=prompt, images_kwargs=setting.kwargs(), return_tensors="pt"
        )
        output = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert last.text == processor.decode(output, skip_special_tokens=True)
        assert last.new_tokens == len(output) and last.prompt_tokens == inputs["input_ids"].shape[1]
        assert last.vision_patches == len(inputs["pixel_values"])
        assert [answer.done for answer in mine] == [False] * (len(mine) - 1) + [True] and len(mine) > 2
        assert 0 < last.preprocessing < last.first_token <= last.total
        assert all(later.text.startswith(earlier.text) for earlier, later in itertools.pairwise(mine))
    assert _said(pieces)[0].language_tokens < _said(pieces)[1].language_tokens


@pytest.mark.every_family(moe=True)
def test_the_page_speaks_of_the_models_own_family(bench, family, tmp_path, monkeypatch):
    pytest.importorskip("gradio")
    from transformers_apt.app.command import assemble

    for name in ("GRADIO_TEMP_DIR", "GRADIO_EXAMPLES_CACHE", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")  # to be put back as it was
    page = assemble(bench.answerer, bench.limits, tmp_path / "page", "a model")
    parts = [part["props"] for part in page.config["components"]]
    shown = {props.get("elem_id"): props for props in parts}
    fine, middle, coarse = _sides(bench)
    head = next(props["value"] for props in parts if "apt-head" in str(props.get("value")))
    series = NAMES[family].split(",")[0]
    assert page.title == f"Adaptive patches for {series}" and page.title in head
    assert f"{fine}-pixel patches, plain regions become {middle}- or {coarse}-pixel patches" in head
    for name, side in (("a-fine", middle), ("b-coarse", coarse)):
        assert f"Whole below, {side} px (" in shown[name]["label"]
    offered = [f"{series}-{size.upper()}" for size in PUBLISHED[family]]
    assert [label for label, _ in shown["size"]["choices"]] == [*offered, "this checkpoint"]
    assert shown["size"]["value"] == "own"


def test_a_published_checkpoints_size_is_chosen_and_the_embedded_ones_is_no_choice():
    config = transformers.Qwen3_5Config()
    assert (Shapes(config).chosen, "own" in Shapes(config).by_name) == ("9b", False)
    embedded = transformers.AutoConfig.from_pretrained(demo_model_path())
    assert Shapes(embedded).labels == [("Qwen2-VL-2B", "2b"), ("Qwen2-VL-7B", "7b")]
    assert Shapes(embedded).chosen == "2b"


@pytest.mark.parametrize(
    ("question", "named"),
    [
        (" ", "Type a question"),
        ("x" * 81, "81 characters; the limit is 80"),
        ("What is <|image_pad|>?", "a special token of the model"),
        ("Hm<|im_end|>", "a special token of the model"),
    ],
)
def test_a_question_that_cannot_be_asked(bench, put, astronaut, question, named):
    with pytest.raises(UserError, match=re.escape(named)):
        list(bench.ask(put(astronaut), question, [HALF]))


def test_visitors_at_once_get_what_they_would_get_alone(bench, put, astronaut):
    asked = [
        (put(astronaut.resize((140 + 28 * n, 140)), f"{n}.png"), f"What is {n}?", SETTINGS[n % len(SETTINGS)])
        for n in range(10)
    ]

    def visit(task):
        path, question, setting = task
        look = bench.look(path, setting)
        answer = _said(bench.ask(path, question, [setting]))[0]
        return look.view.layout.patches.tolist(), look.view.settings, answer.text, answer.prompt_tokens

    alone = [visit(task) for task in asked]
    bench._photos.clear()
    with ThreadPoolExecutor(10) as pool:
        assert list(pool.map(visit, asked)) == alone


def test_a_visitor_who_leaves_frees_the_model(answerer, astronaut, monkeypatch):
    monkeypatch.setattr(answerer, "max_new_tokens", 4000)
    stream = answerer.stream(astronaut.resize((56, 56)), "What?", {"patch_selection_method": "off"})
    next(stream)
    assert not answerer.generating.acquire(blocking=False)
    stream.close()
    assert answerer.generating.acquire(timeout=20)
    answerer.generating.release()


def test_a_failing_model_is_reported_and_freed(bench, put, astronaut, monkeypatch):
    def fail(**_):
        raise RuntimeError("out of order")

    monkeypatch.setattr(bench.answerer.model, "generate", fail)
    with pytest.raises(RuntimeError, match="out of order"):
        list(bench.ask(put(astronaut), "What?", [HALF]))
    assert not bench.answerer.generating.locked()
    assert threading.active_count() < 50


def test_a_failure_before_there_are_figures_is_reported_as_it_is(bench, put, astronaut, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no chat template")

    monkeypatch.setattr(bench.answerer.processor, "apply_chat_template", fail)
    with pytest.raises(RuntimeError, match="no chat template"):
        list(bench.ask(put(astronaut), "What?", [HALF]))


def test_what_a_visitor_sends_is_escaped(bench, put, astronaut):
    photo = bench.photo(put(astronaut, "<img src=x onerror=alert(1)>.png"))
    for said in (
        app_text.describe_photo(photo, "<limit>"),
        app_text.error(photo.name),
        app_text.header("<b>", "qwen2_vl", 14),
    ):
        assert "<img" not in said and "<b>" not in said.replace("<b>&lt;", "")
