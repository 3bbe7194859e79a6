#!/usr/bin/env bash
# Fuzz what reads a peer's bytes, from the committed corpus (tests/fuzz/corpus).
#
#   .ci/fuzz.sh                   every target, FFS_FUZZ_S seconds (60) for each engine: libFuzzer for the
#                                 native targets, atheris for those in Python, side by side
#   .ci/fuzz.sh replay            run the native targets over the corpus and past crashes once; needs gcc only
#   .ci/fuzz.sh corpus            fuzz, then minimise the corpus and what was new into the corpus
#
# Besides the corpus, fuzzing starts from fresh seeds (tests/fuzz/seeds.py), so that a message which was added
# since is tried as well.
#
# A finding leaves its input in build/fuzz/found and prints the command that runs it again. An input that was
# worth a fix goes to tests/fuzz/crashes/TARGET/, where every run tries it first.
set -euo pipefail
cd "$(dirname "$0")/.."

native=(grants parts reader serve store)
python=(frames request reply handshake)
python_bin="$PWD/.venv/bin/python"
corpus=tests/fuzz/corpus
crashes=tests/fuzz/crashes
found=build/fuzz/found
mode=${1:-run}
seconds=${FFS_FUZZ_S:-60}
PATH="$PWD/.venv/bin:$PATH"
# What the loader brings along for other sanitizers must not come along here.
unset LD_PRELOAD
export ASAN_OPTIONS=abort_on_error=1:quarantine_size_mb=16:malloc_context_size=8
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1

# In memory where there is such a place: targets write thousands of files a second, and leave some when killed.
TMPDIR=$(mktemp -d -p /dev/shm ffs-fuzz-XXXXXX 2>/dev/null || mktemp -d)
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT

build() { # build DIRECTORY COMPILER
	mkdir -p "$1"
	if [ ! -f "$1/build.ninja" ]; then
		cmake -S native/fuzz -B "$1" -G Ninja "-DCMAKE_C_COMPILER=$2" >"$1/configure.log" 2>&1 \
			|| { cat "$1/configure.log" >&2; exit 1; }
	fi
	ninja -C "$1" --quiet
}

program() { # program TARGET: what fuzzes it, or runs it over files
	case " ${native[*]} " in
	*" $1 "*) echo "build/fuzz/clang/$1" ;;
	*) echo "build/fuzz/python/$1" ;;
	esac
}

wrap_python() { # libFuzzer starts its program again to minimise: atheris needs one that is a file
	local target
	mkdir -p build/fuzz/python
	for target in "${python[@]}"; do
		cat >"build/fuzz/python/$target" <<-EOF
		#!/bin/sh
		FFS_FUZZ_PROGRAM="\$0" exec "$python_bin" -m tests.fuzz.run $target "\$@"
		EOF
		chmod +x "build/fuzz/python/$target"
	done
}

fuzz_one() { # fuzz_one TARGET SECONDS: new inputs go to build/fuzz/new
	local target=$1 log="build/fuzz/log/$1"
	mkdir -p "build/fuzz/new/$target" "$corpus/$target" "$crashes/$target" build/fuzz/log "$found"
	if "$(program "$target")" "-max_total_time=$2" -max_len=8192 -timeout=60 -rss_limit_mb=2048 \
		"-artifact_prefix=$found/$target-" -print_final_stats=1 "build/fuzz/new/$target" \
		"build/fuzz/seeds/$target" "$corpus/$target" "$crashes/$target" >"$log" 2>&1; then
		printf 'fuzz: %-10s %s\n' "$target" "$(grep -aE 'DONE ' "$log" | tail -1)"
		return
	fi
	tail -n 60 "$log" >&2
	printf 'fuzz: %s FAILED; again with: %s %s\n' "$target" "$(program "$target")" \
		"$(grep -aoE "$found/$target-[a-z]+-[0-9a-f]+" "$log" | tail -1)" >&2
	return 1
}

fuzz_all() { # fuzz_all TARGET...: the time that one engine has, shared by its targets
	local status=0 target
	for target in "$@"; do
		fuzz_one "$target" $((seconds / $#)) || status=1
	done
	return $status
}

minimise() { # minimise TARGET: the fewest inputs that reach what all of them reach
	local target=$1 fresh="build/fuzz/fresh/$1"
	rm -rf "$fresh"
	mkdir -p "$fresh"
	"$(program "$target")" -merge=1 "-artifact_prefix=$found/$target-" -max_len=8192 "$fresh" "build/fuzz/new/$target" "build/fuzz/seeds/$target" \
		"$corpus/$target" \
		>"build/fuzz/log/$target-merge" 2>&1
	rm -rf "${corpus:?}/$target"
	cp -r "$fresh" "$corpus/$target"
	printf 'fuzz: %-10s %s inputs kept\n' "$target" "$(find "$fresh" -type f | wc -l)"
}

run() {
	local status=0
	rm -rf build/fuzz/new build/fuzz/seeds
	"$python_bin" -m tests.fuzz.seeds build/fuzz/seeds
	wrap_python
	if ! "$python_bin" -c 'import atheris' 2>/dev/null; then
		[ "$(uname -m)" != x86_64 ] || { echo "fuzz: atheris is missing; run make setup-test" >&2; exit 1; }
		echo "fuzz: atheris is made for x86-64 alone: the Python targets are not fuzzed here"
		python=()
	fi
	fuzz_all "${native[@]}" &
	[ ${#python[@]} -eq 0 ] || fuzz_all "${python[@]}" || status=1
	wait $! || status=1
	return $status
}

case $mode in
run)
	build build/fuzz/clang clang-14
	run
	;;
replay)
	build build/fuzz/gcc gcc
	for target in "${native[@]}"; do
		mkdir -p "$crashes/$target" # git keeps no empty folder
		find "$corpus/$target" "$crashes/$target" -type f -print0 | sort -z \
			| xargs -0 "build/fuzz/gcc/$target" 2>"build/fuzz/gcc/$target.log" \
			|| { tail -n 60 "build/fuzz/gcc/$target.log" >&2; exit 1; }
		printf '%s: %s\n' "$target" "$(tail -n 1 "build/fuzz/gcc/$target.log")"
	done
	;;
corpus)
	build build/fuzz/clang clang-14
	run
	for target in "${native[@]}" "${python[@]}"; do
		minimise "$target"
	done
	;;
*)
	echo "usage: .ci/fuzz.sh [run|replay|corpus]" >&2
	exit 2
	;;
esac
