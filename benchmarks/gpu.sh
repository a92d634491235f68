#!/usr/bin/env bash
# The tests that need a GPU, and every figure of docs/benchmarks.md that does: about seven minutes on one H100.
#
#     benchmarks/gpu.sh FOLDER [ARCHIVE]        then: python -m benchmarks.gpu_tables FOLDER
#
# Into FOLDER go one folder per benchmark and log.txt. ARCHIVE (FOLDER/results.tar.gz) has the figures and the log; it
# is made anew after every step, so that a run that is cut short leaves what it had. PYTHON says which Python, LIMIT how
# many seconds all of it may take, ONLY which steps (a regular expression, "tests|7b"); DEVICE=cpu QUICK=1 tries the
# steps on a small machine.
set -u
output=${1:?say where the results go: benchmarks/gpu.sh FOLDER}
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
mkdir -p "$output" && output=$(realpath "$output") || exit 1
archive=$(realpath -m "${2:-$output/results.tar.gz}")
cd "$(dirname "$0")/.." || exit 1
export PYTHONUNBUFFERED=1 COLUMNS=${COLUMNS:-240} PYTHONPATH="$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}"
failed=()

v1='{"patch_selection_method": "v1", "importance_method": "upsample_mse", "thresholds": [16, 16]}'
dropping='{"patch_selection_method": "v1", "importance_method": "upsample_mse", "thresholds": [16, 16], "drop_tolerance": 2}'
settings=(--setting "$v1" --setting "$dropping")
like='v1 upsample_mse thresholds [16, 16] drop_tolerance 2'
for alpha in 0.3 0.2; do settings+=(--setting "{\"patch_selection_method\": \"budget\", \"alpha\": $alpha}"); done

if [ "${QUICK:-}" ]; then
	dtype=float32 repeats=1 pictures=(--images 512) areas=(--sizes 512) depth=(--depth 1 --sizes '1 MP' --alphas 0.3)
	models=('qwen2_vl small document') towers=(qwen2_vl)
else
	dtype=bfloat16 repeats=3 pictures=(--images 1080p --images '4 MP') areas=(--sizes 1080p --sizes '4 MP') depth=()
	models=('qwen2_vl 7b document photo' 'qwen3_vl 8b document photo' 'qwen2_vl 2b document' 'qwen2_5_vl 7b document') towers=(qwen2_vl qwen2_5_vl qwen3_vl)
fi

step() { # name, seconds at most, command
	local name=$1 limit=$2 start=$SECONDS left=$((${LIMIT:-36000} - SECONDS))
	shift 2
	if ! [[ $name =~ ${ONLY:-.} ]]; then return; fi
	if [ "$left" -lt "$limit" ]; then limit=$left; fi
	if [ "$limit" -lt 5 ]; then failed+=("$name (no time left)") && return; fi
	echo "== $name"
	timeout --kill-after 5 "$limit" "$@" 2>"$output/errors.txt" || failed+=("$name ($?)")
	# progress bars end in \r, and are no errors
	tr '\r' '\n' <"$output/errors.txt" | grep -v -e '%|' -e '^ *$' | tail -n 15
	rm "$output/errors.txt"
	echo "== $name: $((SECONDS - start)) s"
	(cd "$output" && find . -name '*.json' -o -name log.txt) | tar czf "$archive.part" -C "$output" -T -
	mv "$archive.part" "$archive"
}

everything() {
	local tests
	mapfile -t tests < <(grep -rlE 'mark\.cuda' tests --include='test_*.py')
	step tests 150 "$python" -m pytest -q -m cuda -p no:cacheprovider --durations=3 "${tests[@]}"
	step preprocessing 110 "$python" -m benchmarks.gpu_preprocessing --device "$device" --repeats "$repeats" \
		"${settings[@]}" "${areas[@]}" --output "$output/preprocessing"
	local tower
	for tower in "${towers[@]}"; do
		step "tower $tower" 90 "$python" -m benchmarks.vision_tower --family "$tower" --device "$device" \
			--dtype "$dtype" --repeats "$repeats" "${depth[@]}" --output "$output/tower_$tower"
	done
	local model family size kinds
	for model in "${models[@]}"; do
		read -r family size kinds <<<"$model"
		# shellcheck disable=SC2086  # one option for each word
		step "generate $family $size" 120 "$python" -m benchmarks.generate --family "$family" --size "$size" \
			$(printf -- '--kind %s ' $kinds) --device "$device" --dtype "$dtype" --repeats "$repeats" \
			"${pictures[@]}" "${settings[@]}" --downscaled-like "$like" --output "$output/generate_${family}_$size"
	done
	echo "== all: $SECONDS s; failed: ${failed[*]:-nothing}"
	[ ${#failed[@]} -eq 0 ]
}

everything > >(tee "$output/log.txt")
result=$?
wait $!
exit $result
