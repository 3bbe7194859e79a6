#!/usr/bin/env bash
# Compile the native modules and put them where they are imported from.
#
#   .ci/build.sh BUILD_DIR PACKAGE_DIR [CMake options]
#
# Quick when nothing changed; a build directory of another checkout or with other options is configured
# anew. A module is replaced by a rename, so a process that has the old one mapped keeps running.
set -euo pipefail
cd "$(dirname "$0")/.."

build=$1
package=$2
shift 2
python="$PWD/.venv/bin/python"
PATH="$PWD/.venv/bin:$PATH"
# Warnings are errors with the compiler that we develop with; any other must only compile.
werror=off
[ "$(gcc -dumpversion 2>/dev/null)" = 12 ] && werror=on
options=(-DCMAKE_C_COMPILER=gcc -DFFS_WERROR=$werror "-DPython_EXECUTABLE=$python" "$@")

wanted="$PWD ${options[*]}"
if [ ! -f "$build/build.ninja" ] || [ "$(cat "$build/.ffs-options" 2>/dev/null)" != "$wanted" ]; then
	rm -rf "$build/CMakeCache.txt" "$build/CMakeFiles"
	mkdir -p "$build"
	cmake -S . -B "$build" -G Ninja "${options[@]}" >"$build/configure.log" 2>&1 \
		|| { cat "$build/configure.log" >&2; exit 1; }
	printf '%s\n' "$wanted" >"$build/.ffs-options"
fi
ninja -C "$build" --quiet
for module in "$build"/native/_*.so; do
	target="$package/$(basename "$module")"
	if ! cmp -s "$module" "$target"; then
		cp "$module" "$target.new"
		mv -f "$target.new" "$target"
	fi
done
