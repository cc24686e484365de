"""The tables hold each figure in its row and fit the terminal."""

import pytest
from rich.console import Console

from qat_lightning.commands.bench.inference import BASELINE as ONNX_BASELINE
from qat_lightning.commands.bench.inference import ONNX
from qat_lightning.commands.bench.tables import inference_table, scaling_table, training_table
from qat_lightning.commands.bench.training import BASELINE

MEBIBYTE = 2**20
CONDITIONS = {
    "command": ["bench.shapes=[[1,32]]"],
    "machine": {"processor": "Some CPU", "cores": 4, "instructions": ["avx2"]},
    "versions": {"torch": "2.13.0"},
    "model": {"family": "bert", "parameters": 109_483_778},
    "threads": 2, "device": "cpu", "shape": "16×128", "precision": "32-true", "clock": "wall", "repeats": 5,
}  # fmt: skip


def printed(table, results, width=100):
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(table(CONDITIONS | results))
    return capture.get()


def runtime(bytes, ratio, load, **speed):
    speeds = {
        shape: {"seconds": {"median": seconds}, "speedup": speedup} for shape, (seconds, speedup) in speed.items()
    }
    return {"bytes": bytes, "ratio": ratio, "load": {"median": load}, "speed": speeds}


INFERENCE = {
    "baseline": ONNX_BASELINE,
    "runtimes": {
        ONNX_BASELINE: runtime(437_937_766, 1.0, 0.714, **{"1×32": (0.04216, 1.0), "8×128": (0.9996, 1.0)}),
        ONNX: runtime(30_408_704, 14.4, 1.296, **{"1×32": (0.0151, 2.792), "8×128": (1.0 / 3, 2.998)}),
    },
}


def test_inference():
    """437,937,766 / 2²⁰ = 417.65; 30,408,704 / 2²⁰ = 29."""
    rows = {line[:22].strip(): line[22:].split() for line in printed(inference_table, INFERENCE).splitlines()}
    assert rows[ONNX_BASELINE] == ["417.6", "1.00×", "0.71", "42.2", "(1.00×)", "1000", "(1.00×)"]
    assert rows[ONNX] == ["29.00", "14.40×", "1.30", "15.1", "(2.79×)", "333", "(3.00×)"]
    narrow = printed(inference_table, INFERENCE, 64)
    assert max(map(len, narrow.splitlines())) <= 64
    assert all(figure in narrow for figure in ("417.6", "14.40×", "42.2", "(2.79×)", "(3.00×)"))


def seconds(median, low=0.0, high=0.0):
    return {"median": median, "low": low, "high": high, "least": low}


def row(median, ratio, peak):
    step = {"seconds": seconds(median, 0.9 * median, 2 * median), "ratio": ratio, "samples_per_second": 16 / median}
    return {
        "step": step,
        "evaluation": {"seconds": seconds(median / 5), "ratio": ratio / 2},
        "memory": {"peak": peak * MEBIBYTE, "kept": MEBIBYTE, "saved": peak * MEBIBYTE // 2},
    }


def training(**variants):
    return {"baseline": BASELINE, "variants": variants}


def test_training():
    """16 rows in 2 s are 8 rows a second; 100 MiB are 1.25 times 80; 50 MiB are saved."""
    results = training(**{BASELINE: row(0.05, 1.0, 80), "qat": row(2.0, 1.5, 100), "map": {"error": "no map here"}})
    text = printed(training_table, results)
    rows = {line[:13].strip(): line[13:].split() for line in text.splitlines()}
    assert rows["qat"] == ["2000", "1800–4000", "1.50×", "8.0", "100", "1.25×", "50.0", "400", "0.75×"]
    assert rows["transformers"] == ["50.0", "45.0–100", "1.00×", "320.0", "80.0", "1.00×", "40.0", "10.0", "0.50×"]
    assert "map" not in rows
    assert "map: no map here" in text
    text = printed(training_table, training(qat={"step": row(2.0, 1.5, 100)["step"]}))
    assert "1.50×" in text
    assert "peak" not in text
    assert "eval" not in text


def test_longest_training_rows_fit_into_100_columns():
    wide = row(12.345, 12.34, 123_456)
    text = printed(training_table, training(**{BASELINE: wide, "ti_context, compiled": wide}))
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text


def test_compiled_rows_are_compared_with_the_compiled_baseline():
    peaks = {BASELINE: 400, f"{BASELINE}, compiled": 100, "qat, compiled": 200}
    text = printed(training_table, training(**{name: row(1.0, 1.0, peak) for name, peak in peaks.items()}))
    (line,) = (line for line in text.splitlines() if "qat, compiled" in line)
    assert "2.00×" in line


def test_scaling():
    def point(plain, own, *peaks):
        rows = {
            BASELINE: {"seconds": seconds(plain), "ratio": 1.0},
            "qat": {"seconds": seconds(own), "ratio": own / plain},
        }
        for name, peak in zip(rows, peaks, strict=False):
            rows[name]["peak"] = peak * MEBIBYTE
        return rows

    axes = {
        "lengths": {"64": point(0.5, 0.75, 100, 250)},
        "processes": {"1": point(0.01, 0.02), "2": {"error": "gloo"}},
    }
    text = printed(scaling_table, {"baseline": BASELINE, "variant": "qat", "axes": axes})
    lines = [line.split() for line in text.splitlines()]
    assert ["lengths", "64", "500", "750", "1.50×", "100", "250", "2.50×"] in lines
    assert ["processes", "1", "10.0", "20.0", "2.00×", "–", "–", "–"] in lines
    assert "processes 2: gloo" in text


@pytest.mark.parametrize("clock", ["wall", "processor"])
def test_the_heading_names_command_model_machine_and_units(clock):
    text = printed(training_table, training() | {"clock": clock}, 200)
    for part in (
        "python -m qat_lightning.bench 'bench.shapes=[[1,32]]'",
        "bert, 109,483,778 parameters, random weights; threads: 2",
        "Some CPU, 4 cores (avx2)",
        "torch 2.13.0",
        "steps of 16×128",
        "ms of processor time, median of 5" if clock == "processor" else "ms, median of 5",
    ):
        assert part in text
