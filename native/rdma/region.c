/* See region.h. */
#include "rdma/region.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "core/sys.h"
#include "rdma/calls.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct ffs_declared *all_declared;
static struct ffs_region *regions;

static bool covers(const uint8_t *memory, size_t bytes, const uint8_t *wanted, size_t wanted_bytes)
{
	return wanted >= memory && wanted_bytes <= bytes &&
	       (size_t)(wanted - memory) <= bytes - wanted_bytes;
}

/* ------------------------------------------------------------------------- with the lock held */

/* What was declared serves all that lies in it. What a call holds serves those calls that are about
 * the very same memory, which is thus there for as long as any of them: of a larger one, parts
 * might have been unmapped when the one that registered it ended. */
static bool serves(const struct ffs_region *region, const uint8_t *memory, size_t bytes)
{
	if (region->declared)
		return covers(region->memory, region->bytes, memory, bytes);
	return region->memory == memory && region->bytes == bytes;
}

static struct ffs_region *find(const struct ibv_pd *pd, const uint8_t *memory, size_t bytes,
                               int access)
{
	struct ffs_region *region = regions;
	while (region != NULL && !(region->pd == pd && (region->access & access) == access &&
	                           serves(region, memory, bytes)))
		region = region->next;
	return region;
}

static const struct ffs_declared *find_declared(const uint8_t *memory, size_t bytes)
{
	const struct ffs_declared *declared = all_declared;
	while (declared != NULL && !covers(declared->memory, declared->bytes, memory, bytes))
		declared = declared->next;
	return declared;
}

static void unlink_region(struct ffs_region *region)
{
	struct ffs_region **link = &regions;
	while (*link != region)
		link = &(*link)->next;
	*link = region->next;
	(void)ffs_verbs()->ibv_dereg_mr(region->mr);
	free(region);
}

static int add(struct ffs_region **region, const struct ffs_region *wanted)
{
	struct ffs_region *made = ffs_sys_calloc(1, sizeof(*made));
	if (made == NULL)
		return -ENOMEM;
	*made = *wanted;
	errno = 0;
	made->mr = ffs_reg_mr(made->pd, made->memory, made->bytes, made->access);
	if (made->mr == NULL) {
		int error = errno;
		free(made);
		return error > 0 ? -error : -EIO;
	}
	made->next = regions;
	regions = made;
	*region = made;
	return 0;
}

/* ------------------------------------------------------------------------------------ the calls */

void ffs_region_declare(struct ffs_declared *declared, const void *memory, size_t bytes)
{
	declared->memory = memory;
	declared->bytes = bytes;
	pthread_mutex_lock(&lock);
	declared->next = all_declared;
	all_declared = declared;
	pthread_mutex_unlock(&lock);
}

void ffs_region_withdraw(struct ffs_declared *declared)
{
	pthread_mutex_lock(&lock);
	struct ffs_declared **link = &all_declared;
	while (*link != declared)
		link = &(*link)->next;
	*link = declared->next;
	for (struct ffs_region *region = regions, *next; region != NULL; region = next) {
		next = region->next;
		if (!region->declared || region->memory != declared->memory ||
		    region->bytes != declared->bytes ||
		    find_declared(region->memory, region->bytes) != NULL)
			continue;
		region->declared = false; /* whoever still uses it ends it, and nobody finds it */
		region->memory = NULL;
		if (region->users == 0)
			unlink_region(region);
	}
	pthread_mutex_unlock(&lock);
}

int ffs_region_hold(struct ffs_region **region, struct ibv_pd *pd, const void *memory, size_t bytes,
                    int access, bool shared)
{
	struct ffs_region wanted = {.memory = memory, .bytes = bytes, .pd = pd, .access = access};
	int error = 0;
	pthread_mutex_lock(&lock);
	*region = find(pd, memory, bytes, access);
	if (*region == NULL) {
		const struct ffs_declared *declared = shared ? find_declared(memory, bytes) : NULL;
		if (declared != NULL) {
			wanted.memory = declared->memory;
			wanted.bytes = declared->bytes;
			wanted.declared = true;
		}
		error = add(region, &wanted);
	}
	if (error == 0)
		(*region)->users++;
	pthread_mutex_unlock(&lock);
	return error;
}

void ffs_region_drop(struct ffs_region *region)
{
	pthread_mutex_lock(&lock);
	if (--region->users == 0 && !region->declared)
		unlink_region(region);
	pthread_mutex_unlock(&lock);
}

uint32_t ffs_regions_count(void)
{
	uint32_t count = 0;
	pthread_mutex_lock(&lock);
	for (const struct ffs_region *region = regions; region != NULL; region = region->next)
		count++;
	pthread_mutex_unlock(&lock);
	return count;
}

void ffs_regions_forget(void)
{
	regions = NULL;
	lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
}
