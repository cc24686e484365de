"""A mistake in the settings of a benchmark is refused with its key."""

import pytest

from qat_lightning.commands.bench.run import run_bench
from tests.commands.bench.configurations import composed

MISTAKES = {
    "inference": {
        "bench.repeats=0": r"bench\.repeats=0", "bench.repeats=many": r"bench\.repeats='many'",
        "bench.shapes=[[1]]": r"bench\.shapes holds \[1\]", "bench.shapes=[[1,65]]": "1×65",
        "bench.name=inferense": "did you mean 'inference'", "threads=0": "threads=0",
        "output=/no/such/folder/x.json": "output=/no/such/folder", "model=tiny_llama": "llama",
    },
    "training": {
        "bench.untimed=-1": r"bench\.untimed=-1", "bench.shape=[3]": r"bench\.shape", "bench.shape=8": r"bench\.shape",
        "bench.shape=[3,65]": r"bench\.shape holds 3×65", "bench.precision=bf16": "bf16-mixed",
        "bench.compiled=maybe": r"bench\.compiled='maybe'", "bench.device=tpu": r"bench\.device='tpu'",
        "bench.only=[quat]": "did you mean 'qat'", "bench.only=everything": r"bench\.only='everything'",
        "bench.variants=3": r"bench\.variants", "bench.variants.qat='losses=task'": r"bench\.variants\.qat='losses=task'",
        "bench.variants.qat=['model=bert_base']": "'model=bert_base'",
        "bench.variants.qat=['data.rows=8']": r"'data\.rows=8'.*bench\.shape",
        "bench.variants.qat=['trainer.precision=bf16-true']": r"bench\.precision",
        "bench.variants.qat=['quantization.weight.clip=1']": r"'quantization\.weight\.clip=1'",
        "bench.variants.qat=['losses=tusk']": r"bench\.variants\.qat: .*losses/tusk",
        "bench.variants.qat=['teacher=none','losses=logits']": r"losses\.logits",
    },
    "scaling": {
        "bench.lengths=[0]": r"bench\.lengths\.0=0", "bench.rows=4": r"bench\.rows=4",
        "bench.layers=[2]": r"bench\.layers", "bench.lengths=[65]": r"bench\.lengths holds 3×65",
        "bench.variant=everthing": "did you mean 'everything'", "bench.compiled=both": r"bench\.compiled=both",
    },
}  # fmt: skip
"""Benchmark → override → what the message holds."""
EMPTY = ("bench.lengths=[]", "bench.rows=[]", "bench.layers=[]", "bench.processes=[]", "bench.repeats=1")


@pytest.mark.parametrize(
    ("bench", "override"), [(bench, override) for bench in MISTAKES for override in MISTAKES[bench]]
)
def test_a_mistake_is_refused(bench, override):
    settings = (*EMPTY, override) if bench == "scaling" else (override,)
    with composed(bench, *settings) as config, pytest.raises(ValueError, match=MISTAKES[bench][override]):
        run_bench(config, [])
