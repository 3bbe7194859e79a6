#!/usr/bin/env bash
# Make this checkout ready: Debian packages that are missing, the virtual environment, the project in it.
#
#   .ci/setup.sh         what building and running needs
#   .ci/setup.sh test    and what the test suite and the linters call
#
# Idempotent, and quick when there is nothing to do: a stamp in .venv remembers what was installed, from
# which pyproject.toml, into which folder. A folder that was moved or copied repairs itself.
set -euo pipefail
cd "$(dirname "$0")/.."

level="${1:-run}"
venv=.venv
stamp="$venv/.ffs-setup"
extras=dev,torch
python_min="3, 11"

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# --- Debian packages -------------------------------------------------------------------------------

missing=()
need() { # need PACKAGE COMMAND...: the package is missing unless the command succeeds
	local package=$1
	shift
	"$@" >/dev/null 2>&1 || missing+=("$package")
}
has_headers() { printf '#include <stdio.h>\n#include <linux/errqueue.h>\n' | cc -E - ; }
has_python_headers() {
	"$1" -c 'import os, sysconfig as s; assert os.path.exists(s.get_path("include") + "/Python.h")'
}
has_uring() { printf '#include <liburing.h>\n' | cc -E - ; }
has_fuzzer() { compgen -G '/usr/lib/llvm-14/lib/clang/*/lib/linux/libclang_rt.fuzzer-*.a'; }
has_postgres() { command -v postgres || compgen -G '/usr/lib/postgresql/*/bin/postgres'; }
has_nginx() { command -v nginx || test -x /usr/sbin/nginx; }
has_iptables() { command -v iptables || test -x /usr/sbin/iptables; }
has_faketime() { compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1'; }
has_tc() { command -v tc || test -x /usr/sbin/tc; }
has_verbs() { printf '#include <infiniband/verbs.h>\n#include <rdma/rdma_cma.h>\n' | cc -E - ; }
recent_python() { "$1" -c "import sys; assert sys.version_info >= ($python_min)"; }

# Prefer what `python3` is; else a newer one that lies beside it.
find_python() {
	local candidate
	for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11 /usr/bin/python3; do
		if command -v "$candidate" >/dev/null && recent_python "$candidate" 2>/dev/null; then
			command -v "$candidate"
			return
		fi
	done
}

list_missing() {
	missing=()
	need gcc command -v gcc
	need libc6-dev has_headers
	need liburing-dev has_uring
	local python
	python=$(find_python)
	if [ -z "$python" ]; then
		missing+=(python3 python3-venv python3-dev)
	else
		need python3-venv "$python" -c 'import venv, ensurepip'
		need python3-dev has_python_headers "$python"
	fi
	if [ "$level" = test ]; then
		need e2fsprogs test -x /sbin/mkfs.ext4 -o -x /usr/sbin/mkfs.ext4
		need fio command -v fio
		need strace command -v strace
		need nginx-light has_nginx
		need redis-server command -v redis-server
		need iproute2 has_tc
		need iptables has_iptables
		need faketime has_faketime
		need nbdkit command -v nbdkit
		need nbdkit-plugin-python nbdkit --dump-plugin python
		need libnbd-bin command -v nbdfuse
		need postgresql has_postgres
		# tests/rdma: a guest kernel with Soft-RoCE, and what is packed into its image.
		need libibverbs-dev has_verbs
		need librdmacm-dev has_verbs
		need ibverbs-providers test -e /etc/libibverbs.d/rxe.driver
		need ibverbs-utils command -v ibv_devices
		need rdmacm-utils command -v rping
		need perftest command -v ib_write_bw
		need qemu-system-x86 command -v qemu-system-x86_64
		need busybox-static command -v busybox
		need erofs-utils command -v mkfs.erofs
		need kmod command -v depmod
		need clang-14 command -v clang-14
		need libclang-rt-14-dev has_fuzzer
		need clang-format-14 command -v clang-format-14
		need clang-tidy-14 command -v clang-tidy-14
	fi
}

install_missing() {
	local root=()
	command -v apt-get >/dev/null || die "needed and missing: ${missing[*]}; install them and try again"
	if [ "$(id -u)" != 0 ]; then
		command -v sudo >/dev/null \
			|| die "neither root nor sudo here; as root: apt-get install ${missing[*]}"
		root=(sudo)
	fi
	say "installing Debian packages: ${missing[*]}"
	"${root[@]}" apt-get update -qq || say "apt-get update failed; trying with the lists there are"
	"${root[@]}" env DEBIAN_FRONTEND=noninteractive \
		apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null \
		|| die "apt-get could not install: ${missing[*]}"
}

list_missing
if [ ${#missing[@]} -gt 0 ]; then
	install_missing
	list_missing
	[ ${#missing[@]} -eq 0 ] || die "still missing after the installation: ${missing[*]}
setup: if python3 is not Debian's own, it lacks its venv module or headers: set PYTHON=/usr/bin/python3"
fi

# --- the virtual environment --------------------------------------------------------------------------

wanted() { # what the environment depends on, as one line
	printf '%s %s %s\n' "$PWD" "$extras" "$(cat pyproject.toml .ci/setup.sh | sha256sum | cut -c1-32)"
}

works() { "$venv/bin/python" -c "import pip, sys; assert sys.version_info >= ($python_min)" 2>/dev/null; }

make_environment() {
	works && return
	local python
	python=$(find_python)
	say "making $venv with $($python --version)"
	rm -rf "$venv"
	"$python" -m venv "$venv"
}

# Scripts name their interpreter by its absolute path: point those of a moved environment to the new one.
repair_scripts() {
	local file
	for file in "$venv"/bin/*; do
		if [ -f "$file" ] && [ ! -L "$file" ] && head -c 2 "$file" | grep -qaF '#!'; then
			sed -i "1s|^#!.*/$venv/bin/python[0-9.]*|#!$PWD/$venv/bin/python|" "$file"
		fi
	done
}

# The project is installed as a link to this folder; `make build` compiles what it needs into ffs/.
install_project() {
	local pip=("$venv/bin/python" -m pip --quiet --disable-pip-version-check)
	if [ -f "$stamp" ] && [ "$(cut -d' ' -f2- "$stamp")" = "$(wanted | cut -d' ' -f2-)" ]; then
		say "this folder was moved: repairing $venv"
		repair_scripts
		"${pip[@]}" install --no-deps --no-build-isolation -e .
	else
		say "installing the project and its dependencies into $venv (minutes, the first time)"
		"${pip[@]}" install 'scikit-build-core>=1.1' 'cmake>=3.25' ninja
		"${pip[@]}" install --no-build-isolation -e ".[$extras]"
	fi
}

if ! { works && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(wanted)" ]; }; then
	make_environment
	install_project
	wanted >"$stamp"
	say "ready"
fi
