#!/usr/bin/env bash
# Measure the frontier of a real model on one GPU, without a network: every system in a process of its own, on one output folder.
#
#     tools/real_gpu.sh FOLDER OUTPUT --prompts train.jsonl --eval_prompts test.jsonl --neutral_text text.txt.gz
#
# FOLDER holds config.json, weights and tokenizer. Further flags are those of benchmarks/frontier.py. OUTPUT/points.jsonl gets a
# line for each point as it comes, OUTPUT/log-NAME.txt what each process says; the table comes at the end. Run the same command
# again after a kill: what is finished is kept.
set -euo pipefail

if [ $# -lt 2 ]; then
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
model=$1 output=$2
shift 2
frontier=$(cd "$(dirname "$0")/.." && pwd)/benchmarks/frontier.py
python=${PYTHON:-python3}
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
mkdir -p "$output"

flags=(--model "$model" --output_dir "$output" --seeds 0 --num_prompts 150 --best_of 4 8)
flags+=(--plains plain plain-far --dials dial --num_train_epochs 10 --dial_guidance 0 1 3 --dial_tags 5)
flags+=(--grpo_betas 0.04 --grpo_batches 64 --grpo_stops 10 20 30 40 "$@")
rates=(1e-5 3e-5)

names=() processes=()
start() { # name, flags of its own
    "$python" "$frontier" "${flags[@]}" "${@:2}" >"$output/log-$1.txt" 2>&1 &
    names+=("$1") processes+=($!)
}
trap 'kill "${processes[@]}" 2>/dev/null || true' INT TERM

start start --systems
start plain --systems plain --plains plain
start plain-far --systems plain --plains plain-far
start dial --systems dial
for rate in "${rates[@]}"; do start "grpo-$rate" --systems grpo --grpo_learning_rates "$rate"; done

failed=0
for i in "${!processes[@]}"; do
    wait "${processes[$i]}" || { failed=1; echo "real_gpu: ${names[$i]} failed:" >&2; tail -n 5 "$output/log-${names[$i]}.txt" >&2; }
done
[ "$failed" = 0 ] || exit 1
"$python" "$frontier" "${flags[@]}" --systems plain dial grpo --grpo_learning_rates "${rates[@]}" # measures nothing: the table of all
