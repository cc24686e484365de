"""SIGKILL at any moment: the same command again ends in the same bits."""

import pytest

from tests.training.checkpoints.killing import Kill, killed

WORKERS = ["data.num_workers=2"]
STEPS = 40


def check_equal(what: str, hashes: list[str], expected: int) -> None:
    whole, *others = hashes
    equal = sum(found == whole for found in others)
    print(f"{what}: {equal} of {expected} equal")
    assert [found for found in others if found != whole] == []
    assert len(whole) == 64
    assert equal == expected


# Checkpoints every 3 steps. Write 7: one that replaces another, half written. Rename 3: only previous.ckpt is there. 13: a
# checkpoint behind, in the middle of a stage. 40: all is trained, nothing of the last stage is written. Runs that are
# stopped without SIGKILL are in test_resume.py.
SAMPLE: list[Kill] = [("write", 7, []), ("rename", 3, []), ("batch", 13, WORKERS), ("batch", 40, [])]


def test_killed_runs_end_in_the_same_bits():
    check_equal("a sample of kills", killed((), SAMPLE), len(SAMPLE))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_kill_at_every_step(processes):
    kills: list[Kill] = [("batch", step, WORKERS if step % 10 == 5 else []) for step in range(1, STEPS + 1)]
    check_equal(f"killed at every step, {processes} processes", killed((), kills, processes, 1700), STEPS)


@pytest.mark.slow
def test_a_kill_at_every_write():
    """Every checkpoint and best weights half written, and every moment at which last.ckpt has no name."""
    writes = 12
    kills: list[Kill] = [(place, number, []) for place in ("write", "rename") for number in range(1, writes + 1)]
    kills = [kill for kill in kills if kill[0] == "write" or kill[1] <= 10]
    check_equal("killed while writing", killed((), kills, timeout=500), len(kills))


LSQ = (
    "quantization=lsq_w2a8",
    "quantization.weight.bits=3",
    "callbacks=step_size_warmup",
    "callbacks.step_size_warmup.steps=5",
)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    "settings",
    [
        ("intervention_schedule=stochastic",),
        ("intervention_schedule=inverted",),
        ("intervention_schedule=gradual",),
        LSQ,
        ("trainer.accumulate_grad_batches=2",),
        ("trainer.precision=bf16-mixed",),
        WORKERS,
        (
            *LSQ,
            *WORKERS,
            "intervention_schedule=stochastic",
            "trainer.accumulate_grad_batches=2",
            "trainer.precision=bf16-mixed",
        ),
    ],
    ids=["stochastic", "inverted", "gradual", "lsq", "accumulation", "bf16", "workers", "all"],
)
def test_every_method_survives_kills(settings, processes):
    kills: list[Kill] = [("batch", 3, []), ("batch", 8, []), ("write", 6, []), ("batch", 17, []), ("batch", 33, [])]
    check_equal(" ".join(settings), killed(settings, kills, processes, 500), len(kills))
