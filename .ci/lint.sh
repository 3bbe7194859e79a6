#!/usr/bin/env bash
# Every static check, each one run even if an earlier one failed; the exit status says whether all passed.
set -uo pipefail
cd "$(dirname "$0")/.."

bin=.venv/bin
failed=()
check() { # check NAME COMMAND...
	local name=$1 output
	shift
	if output=$("$@" 2>&1); then
		printf 'ok      %s\n' "$name"
	else
		printf 'FAILED  %s\n%s\n' "$name" "$output"
		failed+=("$name")
	fi
}

tidy() { # one process a core; clang-tidy needs no build, only the flags that matter to it
	local includes
	includes=$("$bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
	printf '%s\0' "$@" | xargs -0 -P "$(nproc)" -I{} clang-tidy-14 --quiet {} -- \
		-std=gnu11 -D_GNU_SOURCE -DFFS_HAVE_VERBS -DFFS_HAVE_CM -DPy_LIMITED_API=0x030B0000 -Inative "-isystem$includes"
}

mapfile -t c_files < <(find native bench -name '*.[ch]' | sort)
mapfile -t c_sources < <(find native -name '*.c' | sort)

check "ruff check" "$bin/python" -m ruff check .
check "ruff format" "$bin/python" -m ruff format --check .
check "mypy" "$bin/python" -m mypy
check "mypy tests" "$bin/python" -m mypy -p tests
check "import-linter" "$bin/python" -m importlinter.cli lint
check "clang-format" clang-format-14 --dry-run -Werror "${c_files[@]}"
check "clang-tidy" tidy "${c_sources[@]}"

[ ${#failed[@]} -eq 0 ] || { printf 'lint: failed: %s\n' "${failed[*]}" >&2; exit 1; }
