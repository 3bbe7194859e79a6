/* Count the bytes that a process moves with memcpy, memmove, mempcpy and their _chk forms.
 *
 * Loaded by LD_PRELOAD. Only calls of >= 512 bytes count: headers are not payload. The totals live
 * in the file COPYCOUNT_OUT.<pid>, two little-endian u64 (bytes, calls), shared with whoever reads
 * it while the process runs: so a loop can be measured without what start-up and exit copy. A
 * forked child goes on counting in its parent's file. Copies that a compiler inlined, or that libc
 * makes inside itself, are not seen: the engines' own counters (ffs._reader.counters) are the other
 * half of the check.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define COUNTED_BYTES_MIN 512

struct totals {
	_Atomic uint64_t bytes;
	_Atomic uint64_t calls;
};

static struct totals early; /* until the file is mapped, and when there is none */
static struct totals *totals = &early;
static void *(*real_memmove)(void *, const void *, size_t);

__attribute__((constructor)) static void start(void)
{
	char path[4096];
	const char *prefix = getenv("COPYCOUNT_OUT");
	real_memmove = (void *(*)(void *, const void *, size_t))dlsym(RTLD_NEXT, "memmove");
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

/* Before the constructor ran there is no real memmove to call: a plain loop does. */
static void *move_slowly(void *target, const void *source, size_t bytes)
{
	volatile char *to = target;
	const char *from = source;
	if ((uintptr_t)to <= (uintptr_t)from)
		for (size_t i = 0; i < bytes; i++)
			to[i] = from[i];
	else
		for (size_t i = bytes; i > 0; i--)
			to[i - 1] = from[i - 1];
	return target;
}

static void *move(void *target, const void *source, size_t bytes)
{
	if (bytes >= COUNTED_BYTES_MIN) {
		atomic_fetch_add_explicit(&totals->bytes, bytes, memory_order_relaxed);
		atomic_fetch_add_explicit(&totals->calls, 1, memory_order_relaxed);
	}
	return real_memmove ? real_memmove(target, source, bytes) : move_slowly(target, source, bytes);
}

static void *move_checked(void *target, const void *source, size_t bytes, size_t room)
{
	if (bytes > room)
		abort();
	return move(target, source, bytes);
}

void *__memcpy_chk(void *, const void *, size_t, size_t);
void *__memmove_chk(void *, const void *, size_t, size_t);
void *__mempcpy_chk(void *, const void *, size_t, size_t);
void *memcpy(void *, const void *, size_t);
void *memmove(void *, const void *, size_t);
void *mempcpy(void *, const void *, size_t);

void *memcpy(void *target, const void *source, size_t bytes)
{
	return move(target, source, bytes);
}
void *memmove(void *target, const void *source, size_t bytes)
{
	return move(target, source, bytes);
}
void *mempcpy(void *target, const void *source, size_t bytes)
{
	return (char *)move(target, source, bytes) + bytes;
}
void *__memcpy_chk(void *target, const void *source, size_t bytes, size_t room)
{
	return move_checked(target, source, bytes, room);
}
void *__memmove_chk(void *target, const void *source, size_t bytes, size_t room)
{
	return move_checked(target, source, bytes, room);
}
void *__mempcpy_chk(void *target, const void *source, size_t bytes, size_t room)
{
	return (char *)move_checked(target, source, bytes, room) + bytes;
}
