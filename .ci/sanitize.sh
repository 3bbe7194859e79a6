#!/usr/bin/env bash
# Run tests of the native code under sanitizers.
#
#   .ci/sanitize.sh asan|tsan [pytest arguments]
#
# The instrumented modules live in a copy of the package below build/asan or build/tsan, never in ffs/: the
# copy comes first on the path of the tests and of every process that they start. Python itself is not
# instrumented, so the sanitizer's library is loaded before it.
set -euo pipefail
cd "$(dirname "$0")/.."

kind=$1
shift
case $kind in
asan)
	flags=address,undefined
	library=libasan.so
	# What Python leaves behind at its exit is not ours; leaks are looked for in a run of their own.
	export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:detect_stack_use_after_return=1
	export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
	tests=(tests/native tests/contract tests/unit/client)
	left_out=()
	;;
tsan)
	flags=thread
	library=libtsan.so
	export TSAN_OPTIONS=die_after_fork=0:halt_on_error=1:second_deadlock_stack=1
	tests=(tests/native)
	# What takes long and runs in one thread: the native code starts none, so nothing can race there.
	left_out=(
		--ignore tests/native/test_crc32.py --ignore tests/native/test_crc32c.py
		--ignore tests/native/test_fail_nth_store.py
		--deselect tests/native/test_chunk_store.py::test_any_flipped_byte_of_the_index_loses_one_chunk_at_most
		--deselect tests/native/test_chunk_store.py::test_a_full_disk_refuses_and_recovers
		--deselect tests/native/test_chunk_store.py::test_freed_extents_are_used_again
		--deselect tests/native/test_chunk_store.py::test_listings_page_in_ascending_order
		--deselect "tests/native/test_reader_queue.py::test_a_fault_costs_what_its_connection_had_taken[one thread"
	)
	;;
*)
	echo "usage: .ci/sanitize.sh asan|tsan [pytest arguments]" >&2
	exit 2
	;;
esac

python="$PWD/.venv/bin/python"
site="$PWD/build/$kind/site"
fresh() { # the copy: our Python files as they are now, links to everything that tests look at
	mkdir -p "$site"
	rm -rf "$site/ffs" "$site/tests"
	cp -rL --preserve=timestamps ffs tests "$site/"
	find "$site" -name '*.so' -delete
	# An editable install finds our own ffs/ before any path: without this the tests would run that.
	cat >"$site/sitecustomize.py" <<-'EOF'
	import sys
	sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != "ScikitBuildInplaceFinder"]
	EOF
	local name
	for name in native server client bench docs .ci pyproject.toml README.md CMakeLists.txt Makefile; do
		[ -e "$name" ] && ln -sfn "$PWD/$name" "$site/$name"
	done
}

fresh
.ci/build.sh "build/$kind" "$site/ffs" -DCMAKE_BUILD_TYPE=Debug "-DFFS_SANITIZE=$flags"
present=()
for test in "${tests[@]}"; do
	[ -e "$site/$test" ] && present+=("$test")
done
preload=$(gcc -print-file-name=$library)
[ "$kind" = asan ] && preload+=" $(gcc -print-file-name=libubsan.so)"
cd "$site"
export LD_PRELOAD=$preload PYTHONPATH=$site PYTHONDONTWRITEBYTECODE=1
# A sanitizer that watches the ordinary modules finds nothing: refuse to start like that.
"$python" - <<-'EOF'
	import os
	import ffs._reader, ffs._storage
	for module in (ffs._reader, ffs._storage):
	    path = os.path.realpath(module.__file__)
	    if not path.startswith(os.path.realpath(os.environ["PYTHONPATH"])):
	        raise SystemExit(f"sanitize: {path} is not the instrumented module")
EOF
"$python" -m pytest -n 2 --dist worksteal \
	-o timeout=300 -o faulthandler_timeout=320 "${left_out[@]}" "$@" "${present[@]}"

# Failing every call in turn once more, in a process that looks for memory which our C code has lost. Python
# takes its own memory from malloc there: the search sees the pointers in it, and is over in a second instead
# of minutes in which it lists what Python keeps. It names no functions, which would take minutes, too.
if [ "$kind" = asan ] && [ $# -eq 0 ]; then
	export PYTHONMALLOC=malloc
	ASAN_OPTIONS+=:detect_leaks=1:leak_check_at_exit=0:symbolize=0 "$python" -m pytest -n 2 --dist worksteal \
		-o timeout=300 -o faulthandler_timeout=320 tests/native/test_fail_nth_*.py
fi
