"""Checkpointed, compiled, sharded blocks on two ranks: the losses of one process, from few compilations."""

import subprocess
import sys

import pytest
from repository import ENV, ROOT
from tiny_world import finetune, lines, make_world, pretrain
from warm_start import run as warm_run

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
# train.py, which leaves the number of its rank's compiled graphs beside itself
COUNTED = """
import sys
from pathlib import Path
from torch._dynamo.utils import counters
from mmed.train import main
from mmed.training import distributed

def stop():
    place = Path(sys.argv[0]).with_name(f"graphs of {distributed.rank()}")
    place.write_text(str(counters["stats"]["unique_graphs"]))
    original()

original, distributed.stop = distributed.stop, stop
sys.exit(main())
"""
RAGGED = ["--sequence_length=640"]  # micro-batches of 720 to 1,010 tokens


@pytest.mark.slow
@pytest.mark.parametrize("command, extra, most", [
    pytest.param(pretrain, [], 1, id="pretrain"),                                # all rows are full
    pytest.param(finetune, ["--lora_rank=0", *RAGGED], 2, id="finetune"),        # the first width, any width
    # also without a gradient of the input, in the first block
    pytest.param(finetune, [*RAGGED, "--lora_dropout=0"], 4, id="lora")])
def test_two_ranks_give_the_losses_of_one_process_and_compile_seldom(tmp_path, command, extra, most):
    world = make_world(tmp_path)
    extra = [*extra, "--max_steps=6"]
    warm_run(command(world, tmp_path / "one", *extra))
    (tmp_path / "counted.py").write_text(COUNTED)
    arguments = command(world, tmp_path / "two", *extra, "--compile=yes", "--activation_checkpointing=all")
    done = subprocess.run([*TORCHRUN, str(tmp_path / "counted.py"), *arguments], env=ENV, cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for one, two in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert one["tokens"] == two["tokens"] and two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    compiled = [int((tmp_path / f"graphs of {rank}").read_text()) for rank in (0, 1)]
    assert 1 <= compiled[0] == compiled[1] <= most
