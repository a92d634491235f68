#!/usr/bin/env bash
# Lets a model practise by self-distillation, its branch and LoRA for the same time, two seeds each, and asks it the
# held-out questions before and after.
#
#     benchmarks/quality/branch.sh FOLDER [MODEL]
#
# MINUTES each of the four practises (25), PROCESSES share it (2), LR is the highest learning rate (1e-3), COUNT
# questions are asked under each setting (900), PYTHON says which Python. The same command goes on where it stopped.
set -eu
output=${1:?say where the results go: benchmarks/quality/branch.sh FOLDER}
mkdir -p "$output" && output=$(realpath "$output")
cd "$(dirname "$0")/../.."
model=$(realpath "${2:-src/transformers_apt/embedded/model}")
python=${PYTHON:-python3} processes=${PROCESSES:-2}
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true
export PYTHONPATH="$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}"
settings=(off 'v1 upsample_mse 4 RMS, drop 2' 'fit 0.45' 'fit 0.3' 'budget upsample_mse 0.3')
compared=('downscale, tokens of v1 upsample_mse 4 RMS, drop 2' 'downscale, tokens of fit 0.45'
	'downscale, tokens of fit 0.3' 'downscale, tokens of 0.3')

launch=("$python")
if ((processes > 1)); then
	launch=("$python" -m accelerate.commands.launch --multi_gpu --num_machines 1 --num_processes "$processes"
		--mixed_precision no --dynamo_backend no)
fi

evaluate() { # folder, settings and further options
	local folder=$1
	shift
	"$python" -m benchmarks.quality.evaluate --model "$model" --out "$output/$folder" --count "${COUNT:-900}" \
		--processes "$processes" --settings "$@"
}

evaluate before "${settings[@]}" "${compared[@]}"
for seed in 0 1; do
	for student in branch lora; do
		name=$student-$seed
		"${launch[@]}" benchmarks/quality/practise.py --model "$model" --student "$student" --seed "$seed" \
			--minutes "${MINUTES:-25}" --lr "${LR:-1e-3}" --out "$output/$name" || continue # it got worse, and says so
		evaluate "$name-answers" "${settings[@]}" "${compared[@]}" --adapter "$output/$name"
		"$python" -m benchmarks.quality.compare "$output/before" "$output/$name-answers" >"$output/$name.md"
	done
done
cat "$output"/*.md
