/* Count how often a process asks for its files to be durable, by kind of file.
 *
 * Loaded by LD_PRELOAD into a storage daemon for a calibration run, never for a timed one: it tells
 * how many bytes a group commit covers, so that the disk's reference writer can sync as often. The
 * totals live in the file SYNCCOUNT_OUT.<pid>, two little-endian u64: syncs of extent files (named
 * *.data), syncs of everything else.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct totals {
	_Atomic uint64_t data;
	_Atomic uint64_t other;
};

static struct totals early;
static struct totals *totals = &early;
static int (*real_fdatasync)(int);
static int (*real_fsync)(int);

__attribute__((constructor)) static void start(void)
{
	char path[4096];
	const char *prefix = getenv("SYNCCOUNT_OUT");
	real_fdatasync = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
	real_fsync = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
	if (!prefix)
		return;
	snprintf(path, sizeof path, "%s.%d", prefix, (int)getpid());
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, sizeof *totals))
		return;
	void *shared = mmap(NULL, sizeof *totals, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (shared != MAP_FAILED)
		totals = shared;
	close(fd);
}

static void count(int fd)
{
	char link[64], path[4096];
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t length = readlink(link, path, sizeof path);
	int is_data = length > 5 && memcmp(path + length - 5, ".data", 5) == 0;
	atomic_fetch_add_explicit(is_data ? &totals->data : &totals->other, 1, memory_order_relaxed);
}

int fdatasync(int fd)
{
	count(fd);
	return real_fdatasync(fd);
}

int fsync(int fd)
{
	count(fd);
	return real_fsync(fd);
}
