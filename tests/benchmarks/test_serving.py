"""The serving benchmark's table. The benchmark itself needs vLLM, and is tried by hand: docs/serving.md."""

import pytest

pytest.importorskip("psutil", reason="needs psutil, which accelerate brings")
from benchmarks.serving import summary


def row(case, load, round_, prompt, seconds):
    return {
        "case": case,
        "load": load,
        "round": round_,
        "requests/s": 1 / seconds,
        "TTFT p50 s": seconds,
        "prompt tokens": prompt,
    }


def test_the_table_has_medians_over_rounds_next_to_off():
    rows = [
        row(case, load, turn, prompt, seconds)
        for load in ("closed", "rate")
        for case, prompt, all_seconds in (("off", 200, (2.0, 4.0, 9.0)), ("fit", 90.5, (1.0, 2.0, 9.0)))
        for turn, seconds in enumerate(all_seconds)
    ]
    off, fit, *_ = summary(rows)
    assert (off["case"], off["prompt tokens"], off["throughput"]) == ("off", 200, 1.0)
    assert (fit["case"], fit["prompt tokens"], fit["TTFT p50 s"]) == ("fit", 90.5, 2.0)
    assert fit["throughput"] == pytest.approx(2.0) and fit["TTFT p50"] == pytest.approx(2.0)
