#!/usr/bin/env bash
# Lets the embedded model practise with cells left out, and asks it and its successor the held-out questions: about six
# minutes with PRACTICE=3.4 on one H200 with 16 cores.
#
#     benchmarks/quality/practice.sh FOLDER [ARCHIVE]
#
# Into FOLDER go the run, its checkpoint, and the answers of the model before and after. ARCHIVE
# (FOLDER/results.tar.gz) has all but the state of the training; it is made anew after every step, so that a run that
# is cut short leaves what it had, and the same command continues. PYTHON says which Python, PRACTICE how many minutes
# to train, UNTIL after how many seconds no further setting is begun; DEVICE=cpu QUICK=1 tries the steps on a small
# machine.
set -u
output=${1:?say where the results go: benchmarks/quality/practice.sh FOLDER}
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
mkdir -p "$output" && output=$(realpath "$output") || exit 1
archive=$(realpath -m "${2:-$output/results.tar.gz}")
cd "$(dirname "$0")/../.." || exit 1
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 PYTHONPATH="$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}"

practice=(--minutes "${PRACTICE:-2}" --steps 20000 --patches 12288 --watch-every 500 --workers 9 --lr 1e-3)
count=2100 batch=32 beside=5 alone=14
if [ "${QUICK:-}" ]; then
	practice=(--minutes "${PRACTICE:-0.5}" --steps 20 --patches 1024 --watch-every 10 --workers 2 --lr 1e-3)
	count=30 batch=4 beside=1 alone=2
fi
embedded=src/transformers_apt/embedded/model
settings=(off 'v1 upsample_mse 4 RMS' '*drop 2*' 'downscale, tokens of v1 upsample_mse*' 'budget upsample_mse 0.3'
	'downscale, tokens of 0.3')

evaluate() { # model, name, processes
	local left where
	for where in "$device" cpu; do # what a GPU cannot do is still to be had, later
		left=$((${UNTIL:-36000} > SECONDS ? ${UNTIL:-36000} - SECONDS : 0))
		"$python" -m benchmarks.quality.evaluate --model "$1" --out "$output/$2" --count "$count" --batch "$batch" \
			--processes "$3" --device "$where" --minutes "$(printf '%d.%02d' $((left / 60)) $((left % 60 * 100 / 60)))" \
			--settings "${settings[@]}" 2>>"$output/$2.log" && break
	done
	echo "== $2: $? on $where after $SECONDS s"
}

pack() {
	tar czf "$archive.part" -C "$output" --exclude 'state.*' --exclude '*.tar.gz*' --warning=no-file-changed .
	mv "$archive.part" "$archive"
}
trap 'pack; exit 1' TERM

evaluate "$embedded" before "$beside" &
before=$!
"$python" -m benchmarks.quality.train --phase 2 --origin "$embedded" --run "$output/run" --device "$device" \
	"${practice[@]}" 2>"$output/run.log" || tail -n 20 "$output/run.log"
echo "== practice: after $SECONDS s"
"$python" -m benchmarks.quality.export --out "$output/checkpoint" \
	--run docs/quality/phase{1,2,2_continued}_training.jsonl "$output/run" || exit 1
pack
evaluate "$output/checkpoint" after "$alone"
pack
wait "$before"
pack
grep -E '^[A-Za-z.]*(Error|Exception)' "$output"/*.log
exit 0
