"""No task of a corpus reads, writes or opens more than its share: counted over 2,000 shards."""
import itertools

import pytest

from benchmarks.data_prep.count_io import count, print_table, write_corpus

SHARDS, TASKS, DOCUMENTS = 2000, 40, 5
MODULES = 400_000  # bytes of libraries, word lists and the tokenizer that a task may load late
RECORD = 12_000  # bytes around the documents of a shard: counts, file headers, one block that is read in full
SIGNATURE = 300  # bytes that a task reads of every document while it decides about all


@pytest.mark.slow
def test_no_task_reads_writes_or_opens_more_than_its_share(tmp_path):
    write_corpus(tmp_path, SHARDS, DOCUMENTS)
    counted = count(tmp_path, TASKS)
    print_table(counted)
    names = [f"{shard:05}" for shard in range(SHARDS)]
    assert {task.step.split(",")[0] for task in counted} == {"filter", "dedup", "decontaminate", "tokenize"}
    for step, tasks in itertools.groupby(counted, key=lambda task: (task.step, task.shard < 0)):
        tasks = list(tasks)
        assert len(tasks) == (1 if step[1] else TASKS)
        for task in tasks:
            assert task.open_at_once <= 6 and task.again <= 4, task
            if task.shard < 0:
                assert not task.inputs, "the last task of a step reads counts, not documents"
                assert max(task.read, task.written) < SHARDS * (RECORD + DOCUMENTS * SIGNATURE), task
                continue
            assert {name.split(".")[0] for name in task.inputs} <= set(names[task.shard::TASKS]), task
            assert task.read < 1.1 * task.input_bytes / TASKS + MODULES + 2000 * SHARDS / TASKS, task
            assert task.written < 3 * task.input_bytes / TASKS + 2000 * SHARDS / TASKS, task
        if not step[1] and step[0] != "dedup, compare":  # which reads the shards that have similar documents
            assert sum(len(task.inputs) for task in tasks) == SHARDS, step
