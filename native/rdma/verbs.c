/* See verbs.h. */
#include "rdma/verbs.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

static struct ffs_verbs table;
static _Atomic(const struct ffs_verbs *) loaded;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void ffs_rdma_say(char *text, const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	(void)vsnprintf(text, FFS_RDMA_TEXT_BYTES, format, arguments);
	va_end(arguments);
}

/* The first name that the library does not have; NULL if the table is full. */
static const char *fill(void *library)
{
	static const char *const names[] = {
#define FFS_VERBS_NAME(name) #name,
		FFS_VERBS(FFS_VERBS_NAME)
#undef FFS_VERBS_NAME
	};
	void *found[sizeof(names) / sizeof(names[0])];
	_Static_assert(sizeof(found) == sizeof(table), "a pointer for each name");
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		found[i] = dlsym(library, names[i]);
		if (found[i] == NULL)
			return names[i];
	}
	memcpy(&table, found, sizeof(table));
	return NULL;
}

/* The library stays loaded: its drivers do not like to go. */
static const struct ffs_verbs *load(char *text)
{
	void *library = dlopen("libibverbs.so.1", RTLD_NOW | RTLD_LOCAL);
	if (library == NULL) {
		ffs_rdma_say(text, "libibverbs.so.1 is not here (Debian: libibverbs1, ibverbs-providers)");
		return NULL;
	}
	const char *missing = fill(library);
	if (missing == NULL)
		return &table;
	ffs_rdma_say(text, "libibverbs.so.1 is too old: it has no %s", missing);
	(void)dlclose(library);
	return NULL;
}

const struct ffs_verbs *ffs_verbs_load(char *text)
{
	const struct ffs_verbs *verbs = atomic_load_explicit(&loaded, memory_order_acquire);
	if (verbs != NULL)
		return verbs;
	pthread_mutex_lock(&lock);
	verbs = atomic_load_explicit(&loaded, memory_order_relaxed);
	if (verbs == NULL)
		verbs = load(text);
	atomic_store_explicit(&loaded, verbs, memory_order_release);
	pthread_mutex_unlock(&lock);
	return verbs;
}

const struct ffs_verbs *ffs_verbs(void)
{
	return atomic_load_explicit(&loaded, memory_order_acquire);
}
