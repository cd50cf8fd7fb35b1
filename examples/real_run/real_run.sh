#!/usr/bin/env bash
# Real exams and real text in six languages through every step of the method, on one CPU core in the better part of an hour.
#
#   examples/real_run/real_run.sh DATA OUT
#
# In:  DATA, a folder with the published files (docs/real_run.md says which): exams in DATA/headqa, igakuqa, frenchmedmcqa,
#      rumedbench, apollo_zh; text in DATA/text/LANGUAGE/{medical,nonmedical}.jsonl.gz.
# Out: OUT/{benchmark,corpus,tokenizer,streams,runs,results} and OUT/report.html.
# Run it again after a stop: each command sees what it has done and goes on from there.
#
# A model of 10 M parameters stays near chance on real exams. The run shows that real data goes through every step.
set -euo pipefail

if [ $# -ne 2 ]; then
    echo "usage: examples/real_run/real_run.sh DATA OUT" >&2
    exit 2
fi
DATA=$1
OUT=$2
PYTHON=${PYTHON:-python}
PRETRAIN_STEPS=${PRETRAIN_STEPS:-200} # of 8 rows of 512 tokens
FINETUNE_STEPS=${FINETUNE_STEPS:-80}  # of 16 exam questions
LIMIT=${LIMIT:-80}                    # test questions of each language
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
LANGUAGES="en zh ja fr ru es"

step() { # say it, then do it
    printf '\n[%(%H:%M:%S)T] $ %s\n' -1 "$*"
    "$@"
}

# 1. Benchmark: exam files as published -> MMedBench's layout. Test is a tenth held out where no official test file is given;
#    a question of HEAD-QA falls on the same side in Spanish and in English.
step "$PYTHON" -m data_prep.mmedbench --source headqa-en="$DATA/headqa/HEAD_EN" --source apollo="$DATA/apollo_zh" \
    --source igakuqa="$DATA/igakuqa" --source frenchmedmcqa="$DATA/frenchmedmcqa" --source rumeddanet="$DATA/rumedbench/RuMedDaNet" \
    --source headqa="$DATA/headqa/HEAD" --language zh --holdout 0.1 --seed 0 --out "$OUT/benchmark"

# 2. Corpus: medical and other text together, as if it came from the web -> medical documents, once each, none with an exam question in it.
for code in $LANGUAGES; do
    step "$PYTHON" -m data_prep.filter_medical "$DATA/text/$code/medical.jsonl.gz" "$DATA/text/$code/nonmedical.jsonl.gz" \
        --language "$code" --source corpus --out "$OUT/corpus/filtered/$code"
    step "$PYTHON" -m data_prep.dedup "$OUT/corpus/filtered/$code/kept" --out "$OUT/corpus/deduplicated/$code"
    step "$PYTHON" -m data_prep.decontaminate "$OUT/corpus/deduplicated/$code/kept" --benchmark "$OUT/benchmark" --out "$OUT/corpus/clean/$code"
done

# 3. One tokenizer for the six languages, and the token streams; one document in fifty is held out for the validation loss.
if [ ! -e "$OUT/tokenizer/tokenizer.model" ]; then
    step "$PYTHON" -m mmed.tokenizer train "$OUT"/corpus/clean/*/kept/*.jsonl.gz --out "$OUT/tokenizer" --vocab_size 8000
fi
streams=""
held_out=""
for code in $LANGUAGES; do
    step "$PYTHON" -m data_prep.tokenize_corpus "$OUT/corpus/clean/$code/kept" --tokenizer "$OUT/tokenizer" --held_out 0.02 \
        --out "$OUT/streams/$code"
    streams="$streams,$OUT/streams/$code"
    held_out="$held_out,$OUT/streams/$code-held-out"
done

# 4. Pre-training from random weights. Temperature 2: the small languages are read more often than their share.
step "$PYTHON" -m mmed.train pretrain_mmedlm2 --model=shape:10m --tokenizer="$OUT/tokenizer" --data="${streams#,}" \
    --validation="${held_out#,}" --mix_temperature=2 --sequence_length=512 --global_batch_size=8 --micro_batch_size=8 \
    --max_steps="$PRETRAIN_STEPS" --learning_rate=1e-3 --warmup_ratio=0.05 --beta2=0.95 --precision=fp32 --activation_checkpointing=no \
    --eval_every=100 --save_every=100 --log_every=5 --out="$OUT/runs/pretrain"

# 5. Fine-tuning on the train questions of all languages: all weights, then LoRA. These sources have no rationales.
common=(--model="$OUT/runs/pretrain/model" --data="$OUT/benchmark/Train" --rationales=without --sequence_length=768
    --global_batch_size=16 --micro_batch_size=8 --max_steps="$FINETUNE_STEPS" --precision=fp32 --activation_checkpointing=no
    --save_every=40 --log_every=5)
step "$PYTHON" -m mmed.train finetune_full "${common[@]}" --learning_rate=3e-4 --out="$OUT/runs/full"
step "$PYTHON" -m mmed.train finetune_lora "${common[@]}" --learning_rate=2e-3 --out="$OUT/runs/lora"

# 6. The exam: the pre-trained model untaught, and both fine-tuned ones. Accuracy by written letter and by the options' likelihood.
exam() {
    step "$PYTHON" -m mmed.eval --data "$OUT/benchmark/Test" --mode answer --scoring both --limit "$LIMIT" --max_new_tokens 16 \
        --too_long cut "$@"
}
exam --model "$OUT/runs/pretrain/model" --setting zero-shot --out "$OUT/results/zero-shot"
exam --model "$OUT/runs/full/model" --setting finetuned --out "$OUT/results/full"
exam --model "$OUT/runs/pretrain/model" --adapter "$OUT/runs/lora/adapter" --setting finetuned --out "$OUT/results/lora"

# 7. Tables, loss curves and questions to read.
step "$PYTHON" -m mmed.reporting "zero-shot:10 M=$OUT/results/zero-shot" "lora:10 M=$OUT/results/lora" "full:10 M=$OUT/results/full" \
    --runs pretrain="$OUT/runs/pretrain" full="$OUT/runs/full" lora="$OUT/runs/lora" --corpus "$OUT/corpus" "$OUT/streams" \
    --out "$OUT/report.html" --title "mmed: real exams, a model of 10 M" \
    --notice "A model this small stays near chance on real exams: this page shows that real data goes through every step, not what the method can do."
