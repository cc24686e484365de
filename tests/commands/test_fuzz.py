"""Wrong configurations by the hundred: every key with another type, out of its range, mistyped. Each is refused in words.

The cases are made of the composed configurations themselves, so a key that is added is asked for as well. They go the
command line's own way: `check_words` reads the words, Hydra composes, `cli.checked` resolves and checks, `run.prepared`
asks the model and the data; `mistakes.told` gives the message. Some are started as a user starts them.
"""

import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        *(word for word in SMALL if not word.startswith(("model", "data"))),
        "model=tiny_vit",
        "data=random_images",
        "data.size=16",
    ),
}
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in ("experiment", "bench"))
MISTYPED = {"small": None, "step_size": "quantization.", "images": "model."}
"""Of the other bases only what the first has not."""


@dataclass(frozen=True)
class Case:
    """One override that must be refused, and what its message must hold; `choices`, one of what would have been right."""

    base: str
    override: str
    names: str
    choices: tuple[str, ...] = ()


def composed(base: str, *overrides: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=[*BASES[base], *overrides])


def nodes(node: Any, prefix: str = "") -> Iterator[tuple[str, Any, tuple[str, ...]]]:
    """Key, value, and the names beside it; of what holds others as well."""
    for name, child in node.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        yield key, child, tuple(map(str, node))
        if isinstance(child, dict):
            yield from nodes(child, key)


def wrong_values(key: str, value: Any) -> list[str]:
    """What cannot stand there whatever else is set, as a user would type it."""
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
MAY_BE = {
    "trainer.devices=-1",  # all of them
}


def mistyped(name: str) -> str:
    """Two letters changed places, or one more."""
    return name[0] + name[2] + name[1] + name[3:] if len(name) > 3 and name[1] != name[2] else name + "x"


def cases() -> list[Case]:
    found: list[Case] = []
    seen: set[str] = set()
    for base, only in MISTYPED.items():
        plain = OmegaConf.to_container(composed(base), resolve=False, enum_to_str=True)
        for key, value, beside in nodes(plain):
            if key in seen or (only and not key.startswith(only)):
                continue
            seen.add(key)
            name = key.rpartition(".")[2]
            wrong = wrong_values(key, value)
            if name == "target_modules" and "optional" in beside:
                wrong = wrong[1:]  # a model may be without such a part
            found += [Case(base, f"{key}={one}", name) for one in wrong]
            if not name.startswith("_"):
                typo = key[: len(key) - len(name)] + mistyped(name)
                # a group is told by Hydra, which knows of groups alone
                if "." in key:
                    found.append(Case(base, f"{typo}=1", mistyped(name), beside))
    found += [Case("small", f"{group}=no_such_option", group, options(group)) for group in GROUPS]
    found += [Case("small", f"{mistyped(group)}=tiny", mistyped(group)) for group in GROUPS]
    found += [Case("small", "+experiment=no_such_experiment", "no_such_experiment", options("experiment"))]
    found += [Case("small", word, part) for word, part in MALFORMED]
    return [case for case in found if case.override not in MAY_BE]


MALFORMED = [
    ("seed", "seed"), ("=3", "group"), ("seed==", "seed"), ("seed=[1", "seed=[1"), ("losses.hidden.weight={a:", "{a:"),
    ("a b=3", "a b"), ("seed=1,2", "seed"), ("++=3", "++=3"), ("~nothing", "nothing"), ("seed=${nothing}", "nothing"),
    ("seed=${oc.env:NO_SUCH_VARIABLE}", "NO_SUCH_VARIABLE"), ("data.batch_size=${seed", "${seed"),
    ("+losses.new._target_=qat_lightning.distillation.losses.Mtach", "Mtach"), ("+losses.new=7", "losses.new"),
    ("+losses.new._target_=builtins.eval", "losses.new"), ("+callbacks.new._target_=os.getcwd", "callbacks.new"),
    ("+logger.new._target_=os.getcwd", "logger.new"), ("+callbacks.new=7", "callbacks.new"),
    ("+logger.new=7", "logger.new"), ("+logger.new._target_=lightning.pytorch.loggers.CSVLoger", "logger.new"),
    ("+quantization.rules.new={parts: x}", "quantization.rules.new"), ("+stages.extra.max_steps=3", "extra"),
    ("stages.train={max_step: 3}", "max_step"), ("trainer={devices: 1, acelerator: cpu}", "acelerator"),
    ("model.student_layers=[9]", "model.student_layers"), ("model.student_layers=[]", "model.student_layers"),
    ("model.student_layers=[x]", "model.student_layers"), ("trainer.devices=0", "trainer.devices"),
    ("trainer.devices=[]", "trainer.devices"), ("trainer.devices=some", "trainer.devices"),
    ("trainer.limit_val_batches=0", "trainer.limit_val_batches"), ("trainer.accelerator=tpux", "trainer.accelerator"),
    ("trainer.limit_val_batches=1.5", "trainer.limit_val_batches"), ("trainer.strategy=dpp", "strategy"),
    ("optimizer.betas=[2,3]", "optimizer.betas"), ("optimizer.betas=[0.9]", "betas"), ("optimizer.lr=inf", "optimizer.lr"),
    ("quantization.bits={layers.0.*: 12}", "quantization.bits"), ("quantization.bits=[3]", "quantization.bits"),
    ("quantization.bits={no.such.part: 3}", "no.such.part"), ("seed=4294967296", "seed"), ("threads=0", "threads"),
    ("data.batch_size=99999999999999999999", "data.batch_size"), ("model.architecture.vocab_size=64", "0 to 63"),
    ("model.architecture.hidden_size=30", "hidden size"), ("model.architecture.max_position_embeddings=4", "positions"),
    ("stages.train.max_steps=null", "stages.train"), ("stages.train.max_steps=3", "stages.train.max_"),
    ("losses.hidden.layers=[[0,9]]", "losses.hidden.layers"), ("losses.hidden.layers=[0,1]", "losses.hidden.layers"),
    ("intervention.map.at=[7]", "intervention.map.at"), ("intervention.map.at=[x]", "intervention.map.at"),
    ("intervention_schedule.shares={nothing: 1}", "nothing"), ("data.metric=speed", "data.metric"),
    ("model='\0'", "model"), ("model=[null]", "model"), ("data=[digits,[text]]", "data"), ("model=1,2", "model"),
    ("stages.intervene=7", "give stages.intervene.KEY=…, choices: checkpoint_every"),
    ("quantization.rules=[1]", "give quantization.rules.KEY=…, choices: embedding"),
    ("quantization.step_size.weights=null", "give quantization.step_size.weights.KEY=…, choices: lr"),
    ("model.student_layers=few", "model.student_layers must be a list"),
    ("stages.intervene.target_modules={a: 1}", "stages.intervene.target_modules must be a list"),
    ("losses=true", "losses"), ("~data._target_", "data"), ("~intervention_schedule._target_", "intervention_schedule"),
    ("~lr_scheduler._target_", "lr_scheduler"), ("data.metrics={accuracy: 3}", "data.metrics.accuracy"),
    ("data.metrics.accuracy=null", "data.metrics.accuracy"), ("trainer.limit_val_batches=0.001", "trainer.limit_val_batches"),
    ("+callbacks.new={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: nope}", "callbacks.new.monitor"),
    ("+callbacks.new={_target_: lightning.pytorch.callbacks.ModelCheckpoint, monitor: val/acuracy}", "'val/accuracy'"),
    ("+callbacks.new={_target_: lightning.pytorch.callbacks.Timer, duration: x}", "callbacks.new"),
    ("+callbacks.new={_target_: lightning.pytorch.callbacks.RichProgressBar}", "callbacks.new"),
    ("+callbacks.new={_target_: lightning.pytorch.callbacks.BatchSizeFinder}", "data.batch_size"),
    ("intervention_schedule.shares={}", "intervention_schedule.shares"), ("+optimizer.maximize=true", "optimizer.maximize"),
    ("+optimizer.differentiable=true", "optimizer"), ("+quantization.weight.threshold=99", "threshold"),
    ("stages.intervene.target_modules=[]", "stages.intervene.target_modules"), ("data.metrics={}", "data.metrics"),
    ("+logger.new={_target_: lightning.pytorch.loggers.CSVLogger, _partial_: true, flush_logs_every_n_steps: 0}", "logger.new"),
    ("+callbacks.new={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: lr}", "callbacks.new.mode"),
    ("+callbacks.new={_target_: qat_lightning.training.analysis_callbacks.HessianSpectrum, top: 1000000}", "callbacks.new.top"),
    ("teacher=none", "teacher"), ("+sed=3", "sed"), ("+trainer.device=3", "trainer.device"), ("data.rows=0", "data.rows"),
]  # fmt: skip


def options(group: str) -> tuple[str, ...]:
    return tuple(path.stem for path in (CONF / group).glob("*.yaml"))


def verdict(case: Case) -> str | None:
    """What is wrong with how the case is refused; None where it is as it should be."""
    folder, start = Path("no_such_folder"), time.process_time()
    try:
        check_words([case.override])
        prepared(checked(composed(case.base, case.override)), folder)
    except Exception as error:
        message = error_message(error)
        if message is None:
            return f"a traceback: {type(error).__name__}: {error}"
    else:
        return "accepted"
    if time.process_time() - start > 5:
        return "took more than 5 seconds"
    if case.names not in message:
        return f"does not name {case.names!r}: {message}"
    if case.choices and not any(choice in message for choice in case.choices):
        return f"does not name the choices: {message}"
    if folder.exists():
        return "left a folder"
    return None if len(message.splitlines()) <= 40 and "Traceback" not in message else f"is long: {message}"


@pytest.mark.slow
def test_null_is_taken_or_refused_in_words():
    """Many a value can be left out so, and which, the classes say; none ends in a traceback."""
    plain = OmegaConf.to_container(composed("small"), resolve=False, enum_to_str=True)
    nulls = [Case("small", f"{key}=null", "") for key, _, _ in nodes(plain)]
    wrong = {case.override: told for case in nulls if (told := verdict(case)) not in (None, "accepted")}
    assert not wrong


def refused(chosen: list[Case], capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {case: told for case in chosen if (told := verdict(case)) is not None}
    with capsys.disabled():
        print(f"\nrefused {len(chosen) - len(wrong)} of {len(chosen)}")
    assert not wrong, "\n".join(f"{case.base}: {case.override}: {told[:300]}" for case, told in wrong.items())


def test_a_sample_of_wrong_configurations_is_refused_in_words(capsys):
    refused(random.Random(5).sample(cases(), 60), capsys)


@pytest.mark.slow
def test_every_wrong_configuration_is_refused_in_words(capsys):
    every = cases()
    assert len(every) >= 300
    refused(every, capsys)


def test_the_right_ones_are_not():
    for base in BASES:
        prepared(checked(composed(base)), Path("no_such_folder"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=few"], "seed"),
        (["data.rows=-1"], "data.rows=-1 must be 1 or more"),
        (["losses.hidden.wieght=1"], "did you mean 'weight'?"),
        (["quantization.attention.query=7"], "quantization.attention.query=7 must be null, or hold a _target_"),
        (["lr_scheduler.warmup=2"], "lr_scheduler.warmup=2 must be"),
        (["trainer.strategy=dpp"], "strategy"),
        (["model=no_such_option"], "bert_base"),
        (["data=[1]"], "the group data takes the name of an option, or several as [one,other]; choices: cifar10"),
        (["seed=[1"], "seed=[1"),
        (["+logger.new._target_=os.system"], "logger.new._target_='os.system' is not allowed"),
        (["optimizer.betas=[2,3]"], "optimizer.betas.0=2 must be"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.slow
def test_as_a_user_meets_it(tmp_path, words, message):
    ended = call(tmp_path, *SMALL, *words, "hydra.run.dir=run")
    assert ended.returncode == 1
    assert ended.stderr.startswith("qat_lightning: ")
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not list(tmp_path.iterdir())
