"""Hundreds of wrong configurations: every key with another type, out of its range, mistyped. Each is refused by a message.

The cases are made of the composed configurations, so a new key is tested without a change here. They take the path of the
command line: `check_words` reads the words, Hydra composes, `checked` checks, `prepared` asks the model and the data.
"""

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from qat_lightning.commands.cli import checked
from qat_lightning.commands.errors import error_message
from qat_lightning.commands.train.run import prepared
from qat_lightning.config.command_line import check_words
from qat_lightning.config.schema import CONF
from tests.command_line import call
from tests.training.runs import SMALL

BASES = {
    "small": SMALL,
    "step_size": (*SMALL, "quantization=lsq_w2a8", "optimizer=kdlsq", "callbacks=step_size_warmup", "losses=kdlsq"),
    "images": (
        *(word for word in SMALL if not word.startswith(("model", "data"))), "model=tiny_vit", "data=random_images",
        "data.size=16",
    ),
}  # fmt: skip
MUTATED = {"small": "", "step_size": "quantization.", "images": "model."}
"""Base → how the keys begin that are taken from it; later ones add only keys that the first does not have."""
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in ("experiment", "bench"))


class Case(NamedTuple):
    """An override that must be refused, and texts of which the message holds one."""

    base: str
    override: str
    names: tuple[str, ...]


def composed(base: str, *overrides: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=[*BASES[base], *overrides])


def keys(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key with its value, also keys that hold others."""
    for name, child in node.items():
        yield f"{prefix}{name}", child
        if isinstance(child, dict):
            yield from keys(child, f"{prefix}{name}.")


def wrong_values(key: str, value: Any) -> list[str]:
    """Return values that are wrong whatever else is set, as a user types them."""
    name = key.rpartition(".")[2]
    if name == "_target_":
        return ["os.system", "qat_lightning.distillation.losses.Nothing", "7", "[1]", "torch.load", "null"]
    if name == "_partial_":
        return []
    if value is None:
        return ["[[1,2],[3]]", "{a: 1}"]
    if isinstance(value, list):
        return ["few", "7", "{a: 1}", "[null]", "[[1],[[2]]]", "[{a: 1}]"]
    if isinstance(value, dict):
        return ["7", "[1]", "[[few]]", "true", *(["null"] if "." not in key or key in NEEDED else [])]
    if isinstance(value, bool):
        return ["few", "[1]", "{a: 1}", "2.5"]
    if isinstance(value, int | float):
        wrong = ["few", "[1]", "{a: 1}", "nan", "inf", "-inf", "-1" if math.isfinite(value) else "few", "'3 or 4'"]
        return wrong + [beyond for ending, beyond in BEYOND.items() if key.endswith(ending)]
    if key in FREE_TEXT or str(value).startswith("${"):
        return ["[1]", "{a: 1}"] if key not in FREE_TEXT else []
    return ["'no such thing'", "[1]", "{a: 1}"]


BEYOND = {
    ".lr": "1e9", ".weight_decay": "1e9", ".eps": "1e9", ".warmup": "1.5", ".temperature": "0", ".gamma": "1.5",
    ".bits": "9", ".clip": "0", ".tail": "2", ".threshold": "99", ".group_size": "0", ".betas.0": "1",
}  # fmt: skip
"""How a key ends → a number that is out of the range of every such key."""
FREE_TEXT, STAGES = ("experiment",), ("teacher", "intervene", "train")
NEEDED = (
    "data.metrics",
    "data.metrics.accuracy",
    "intervention_schedule.shares",
    *(f"stages.{name}" for name in STAGES),
)
"""What holds other keys and cannot be null; a loss, an intervention or a rule is left out so."""
MAY_BE = {"trainer.devices=-1"}
"""All devices."""


def mistyped(name: str) -> str:
    """Exchange two letters, or add one."""
    return name[0] + name[2] + name[1] + name[3:] if len(name) > 3 and name[1] != name[2] else name + "x"


def cases() -> list[Case]:
    found: dict[str, list[Case]] = {}
    for base, start in MUTATED.items():
        plain = OmegaConf.to_container(composed(base), resolve=False, enum_to_str=True)
        for key, value in keys(plain):
            if key in found or not key.startswith(start):
                continue
            path, _, name = key.rpartition(".")
            wrong = wrong_values(key, value)
            if name == "target_modules" and "rules" in key:
                wrong = wrong[1:]  # a rule can be optional
            found[key] = [Case(base, f"{key}={one}", (name, f"{key.split('.')[0]}.")) for one in wrong]
            if path and not name.startswith("_"):
                found[key].append(Case(base, f"{path}.{mistyped(name)}=1", (mistyped(name),)))
    for group in GROUPS:
        choices = tuple(path.stem for path in (CONF / group).glob("*.yaml"))
        found[f"{group}/"] = [Case("small", f"{'+' * (group == 'debug')}{group}=no_such_option", choices)]
        found[f"{group}/"] += [Case("small", f"{mistyped(group)}=tiny", (mistyped(group),))]
    every = [case for each in found.values() for case in each]
    return [case for case in every if case.override not in MAY_BE] + [
        Case("small", word, (part,)) for word, part in MALFORMED
    ]


MALFORMED = [
    ("seed", "seed"), ("=3", "group"), ("seed==", "seed"), ("seed=[1", "seed=[1"), ("losses.hidden.weight={a:", "{a:"),
    ("a b=3", "a b"), ("seed=1,2", "seed"), ("++=3", "++=3"), ("~nothing", "nothing"), ("seed=${nothing}", "nothing"),
    ("seed=${oc.env:NO_SUCH_VARIABLE}", "NO_SUCH_VARIABLE"), ("data.batch_size=${seed", "${seed"),
    ("+losses.new._target_=builtins.eval", "losses.new"), ("+callbacks.new._target_=os.getcwd", "callbacks.new"),
    ("+logger.new._target_=lightning.pytorch.loggers.CSVLoger", "logger.new"), ("+logger.new=7", "logger.new"),
    ("+quantization.rules.new={parts: x}", "quantization.rules.new"), ("+stages.extra.max_steps=3", "extra"),
    ("stages.train={max_step: 3}", "max_step"), ("trainer={devices: 1, acelerator: cpu}", "acelerator"),
    ("model.student_layers=[9]", "model.student_layers"), ("model.student_layers=[]", "model.student_layers"),
    ("model.student_layers=few", "model.student_layers must be a list"), ("trainer.devices=[]", "trainer.devices"),
    ("trainer.accelerator=tpux", "accelerator"), ("trainer.limit_val_batches=1.5", "trainer.limit_val_batches"),
    ("trainer.limit_val_batches=0.001", "trainer.limit_val_batches"), ("trainer.strategy=dpp", "strategy"),
    ("trainer.profiler=xla", "profiler"), ("+trainer.device=3", "trainer.device"), ("trainer.precision=8", "precision"),
    ("optimizer.betas=[2,3]", "beta"), ("optimizer.betas=[0.9]", "betas"), ("optimizer.lr=inf", "optimizer.lr"),
    ("quantization.bits={layers.0.*: 12}", "quantization.bits"), ("quantization.bits=[3]", "quantization.bits"),
    ("quantization.bits={no.such.part: 3}", "no.such.part"), ("seed=4294967296", "seed"), ("threads=0", "threads"),
    ("data.batch_size=99999999999999999999", "data.batch_size"), ("model.architecture.vocab_size=64", "0 to 63"),
    ("model.architecture.hidden_size=30", "hidden size"), ("model.architecture.max_position_embeddings=4", "positions"),
    ("losses.hidden.layers=[0,1]", "losses.hidden.layers"), ("intervention.map.at=[x]", "intervention.map.at"),
    ("intervention_schedule.shares={nothing: 1}", "nothing"), ("intervention_schedule.shares={}", "intervention_schedule"),
    ("model='\0'", "model"), ("model=[null]", "model"), ("data=[digits,[text]]", "data"), ("losses=true", "losses"),
    ("stages.intervene=7", "set stages.intervene.KEY=…, choices: checkpoint_every"),
    ("quantization.rules=[1]", "set quantization.rules.KEY=…, choices: embedding"),
    ("quantization.step_size.weights=null", "set quantization.step_size.weights.KEY=…, choices: lr"),
    ("stages.intervene.target_modules={a: 1}", "stages.intervene.target_modules must be a list"),
    ("data.metrics={accuracy: 3}", "data.metrics"), ("data.metrics={}", "data.metrics"), ("data.rows=0", "data.rows"),
    ("+callbacks.new={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: nope}", "callbacks.new.monitor"),
    ("+callbacks.new={_target_: lightning.pytorch.callbacks.ModelCheckpoint, monitor: val/acuracy}", "'val/accuracy'"),
    ("+callbacks.new={_target_: lightning.pytorch.callbacks.Timer, duration: x}", "callbacks.new"),
    ("+callbacks.new={_target_: lightning.pytorch.callbacks.BatchSizeFinder}", "data.batch_size"),
    ("+callbacks.new={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: lr}", "callbacks.new.mode"),
    ("+callbacks.new={_target_: qat_lightning.training.analysis_callbacks.HessianSpectrum, top: 1000000}", "callbacks.new.top"),
    ("+callbacks.new={_target_: qat_lightning.training.analysis_callbacks.LossLandscape, span: inf}", "callbacks.new.span"),
    ("+logger.new={_target_: lightning.pytorch.loggers.CSVLogger, _partial_: true, flush_logs_every_n_steps: 0}", "logger.new"),
    ("+sed=3", "sed"), ("+experiment=no_such_experiment", "quickstart"), ("+allow_targets=[x]", "on the command line only"),
]  # fmt: skip


def verdict(case: Case) -> str | None:
    """Tell how the refusal of a case is wrong; None where it is right."""
    folder = Path("no_such_folder")
    try:
        check_words([case.override])
        prepared(checked(composed(case.base, case.override)), folder)
    except Exception as error:
        message = error_message(error)
        if message is None:
            return f"a traceback: {type(error).__name__}: {error}"
    else:
        return "accepted"
    if not any(name in message for name in case.names):
        return f"names none of {case.names}: {message}"
    if folder.exists() or len(message.splitlines()) > 40 or "Traceback" in message:
        return f"left a folder, or is long: {message}"
    return None


def refuse(chosen: list[Case], capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {case: problem for case in chosen if (problem := verdict(case)) is not None}
    with capsys.disabled():
        print(f"\nrefused {len(chosen) - len(wrong)} of {len(chosen)}")
    assert not wrong, "\n".join(f"{case.base}: {case.override}: {problem[:300]}" for case, problem in wrong.items())


def test_a_sample_of_wrong_configurations_is_refused(capsys):
    refuse(random.Random(5).sample(cases(), 20), capsys)


@pytest.mark.slow
def test_every_wrong_configuration_is_refused(capsys):
    every = cases()
    assert len(every) >= 1000
    refuse(every, capsys)


@pytest.mark.slow
def test_null_is_accepted_or_refused_by_a_message():
    plain = OmegaConf.to_container(composed("small"), resolve=False, enum_to_str=True)
    nulls = [Case("small", f"{key}=null", ("",)) for key, _ in keys(plain)]
    assert not {case.override: problem for case in nulls if (problem := verdict(case)) not in (None, "accepted")}


def test_the_unchanged_configurations_are_accepted():
    for base in BASES:
        prepared(checked(composed(base)), Path("no_such_folder"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "message"),
    {
        "losses.hidden.wieght=1": "did you mean 'weight'?",
        "model=no_such_option": "bert_base",
        "seed=[1": "seed=[1",
        "+logger.new._target_=os.system": "logger.new._target_='os.system' is not allowed",
        "trainer.max_steps=3": "trainer.max_steps is decided by the run: give stages.STAGE.max_steps",
    }.items(),
)
def test_a_user_gets_one_message_and_exit_code_1(tmp_path, word, message):
    ended = call(tmp_path, *SMALL, word, "hydra.run.dir=run")
    assert ended.returncode == 1
    assert ended.stderr.startswith("qat_lightning: ")
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not list(tmp_path.iterdir())
