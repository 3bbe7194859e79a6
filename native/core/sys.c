/* See sys.h. */
#include "core/sys.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define HANG_LOOK_US 1000

atomic_bool ffs_sys_armed;

static _Atomic int fault_call;
static _Atomic int fault_error;
static _Atomic uint64_t fault_nth;
static _Atomic uint64_t counts[FFS_SYS_CALL_COUNT];
static _Atomic uint64_t count_any;

#define FFS_SYS_NAME(name, text) text,
static const char *const names[] = {FFS_SYS_CALLS(FFS_SYS_NAME)};
#undef FFS_SYS_NAME

void ffs_sys_fault_set(enum ffs_sys_call call, uint64_t nth, int error)
{
	atomic_store(&ffs_sys_armed, false);
	if (nth == 0)
		return; /* the counts stay, to be read */
	for (int i = 0; i < FFS_SYS_CALL_COUNT; i++)
		atomic_store(&counts[i], 0);
	atomic_store(&count_any, 0);
	atomic_store(&fault_call, (int)call);
	atomic_store(&fault_error, error);
	atomic_store(&fault_nth, nth);
	atomic_store(&ffs_sys_armed, true);
}

int ffs_sys_call_by_name(const char *name)
{
	if (strcmp(name, "*") == 0)
		return FFS_SYS_ANY;
	for (int i = 0; i < FFS_SYS_CALL_COUNT; i++)
		if (strcmp(name, names[i]) == 0)
			return i;
	return -1;
}

const char *ffs_sys_call_name(enum ffs_sys_call call)
{
	return names[call];
}

uint64_t ffs_sys_call_count(enum ffs_sys_call call)
{
	return atomic_load(&counts[call]);
}

struct iovec ffs_sys_first_byte(const struct iovec *parts, size_t count)
{
	struct iovec byte = {0};
	for (size_t i = 0; i < count && byte.iov_len == 0; i++)
		if (parts[i].iov_len > 0)
			byte = (struct iovec){.iov_base = parts[i].iov_base, .iov_len = 1};
	return byte;
}

enum ffs_sys_fault ffs_sys_count(enum ffs_sys_call call)
{
	uint64_t any = atomic_fetch_add(&count_any, 1) + 1;
	uint64_t own = atomic_fetch_add(&counts[call], 1) + 1;
	int wanted = atomic_load(&fault_call);
	uint64_t seen = wanted == FFS_SYS_ANY ? any : wanted == (int)call ? own : 0;
	if (seen == 0 || seen != atomic_load(&fault_nth))
		return FFS_SYS_THROUGH;
	int error = atomic_load(&fault_error);
	if (error < 0) {
		while (atomic_load(&ffs_sys_armed))
			(void)usleep(HANG_LOOK_US);
		return FFS_SYS_THROUGH;
	}
	if (error == 0)
		return FFS_SYS_SHORT;
	errno = error;
	return FFS_SYS_FAILS;
}
