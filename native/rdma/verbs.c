/* See verbs.h. */
#include "rdma/verbs.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#define LIBRARY "libibverbs.so.1"

static struct ffs_verbs table;
static ffs_reg_dmabuf_mr_function *reg_dmabuf_mr;
static _Atomic(const struct ffs_verbs *) loaded;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void ffs_rdma_say(char *text, const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	(void)vsnprintf(text, FFS_RDMA_TEXT_BYTES, format, arguments);
	va_end(arguments);
}

bool ffs_rdma_load(const char *library, const char *package, const char *const *names, size_t count,
                   void *functions, char *text)
{
	void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
	if (handle == NULL) {
		ffs_rdma_say(text, "%s is not here (Debian: %s)", library, package);
		return false;
	}
	for (size_t i = 0; i < count; i++) {
		void *found = dlsym(handle, names[i]);
		if (found == NULL) {
			ffs_rdma_say(text, "%s is too old: it has no %s", library, names[i]);
			(void)dlclose(handle);
			return false;
		}
		memcpy((uint8_t *)functions + i * sizeof(found), &found, sizeof(found));
	}
	return true;
}

static const struct ffs_verbs *load(char *text)
{
	static const char *const names[] = {
#define FFS_VERBS_NAME(name) #name,
		FFS_VERBS(FFS_VERBS_NAME)
#undef FFS_VERBS_NAME
	};
	const size_t count = sizeof(names) / sizeof(names[0]);
	_Static_assert(sizeof(names) == sizeof(table), "a pointer for each name");
	if (!ffs_rdma_load(LIBRARY, "libibverbs1, ibverbs-providers", names, count, &table, text))
		return NULL;
	void *handle = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL); /* the same again */
	void *newer = dlsym(handle, "ibv_reg_dmabuf_mr");
	memcpy(&reg_dmabuf_mr, &newer, sizeof(newer));
	return &table;
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

ffs_reg_dmabuf_mr_function *ffs_verbs_reg_dmabuf_mr(void)
{
	return reg_dmabuf_mr;
}

const struct ffs_verbs *ffs_verbs(void)
{
	return atomic_load_explicit(&loaded, memory_order_acquire);
}
