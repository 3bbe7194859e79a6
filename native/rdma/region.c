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
static bool serves(const struct ffs_region *region, const struct ffs_lent *wanted)
{
	const struct ffs_lent *lent = &region->lent;
	if (lent->dmabuf != wanted->dmabuf || lent->dmabuf_at != wanted->dmabuf_at)
		return false;
	if (region->declared)
		return covers(lent->memory, lent->bytes, wanted->memory, wanted->bytes);
	return lent->memory == wanted->memory && lent->bytes == wanted->bytes;
}

static struct ffs_region *find(const struct ibv_pd *pd, const struct ffs_lent *lent, int access)
{
	struct ffs_region *region = regions;
	while (region != NULL &&
	       !(region->pd == pd && (region->access & access) == access && serves(region, lent)))
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

static struct ibv_mr *register_one(const struct ffs_region *region)
{
	const struct ffs_lent *lent = &region->lent;
	if (lent->dmabuf < 0)
		return ffs_reg_mr(region->pd, lent->memory, lent->bytes, region->access);
	return ffs_reg_dmabuf_mr(region->pd, lent->dmabuf_at, lent->bytes,
	                         (uint64_t)(uintptr_t)lent->memory, lent->dmabuf, region->access);
}

static int add(struct ffs_region **region, const struct ffs_region *wanted)
{
	struct ffs_region *made = ffs_sys_calloc(1, sizeof(*made));
	if (made == NULL)
		return -ENOMEM;
	*made = *wanted;
	errno = 0;
	made->mr = register_one(made);
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
		if (!region->declared || region->lent.memory != declared->memory ||
		    region->lent.bytes != declared->bytes ||
		    find_declared(region->lent.memory, region->lent.bytes) != NULL)
			continue;
		region->declared = false; /* whoever still uses it ends it, and nobody finds it */
		region->lent.memory = NULL;
		if (region->users == 0)
			unlink_region(region);
	}
	pthread_mutex_unlock(&lock);
}

int ffs_region_hold(struct ffs_region **region, struct ibv_pd *pd, const struct ffs_lent *lent,
                    int access, bool shared)
{
	struct ffs_region wanted = {.lent = *lent, .pd = pd, .access = access};
	int error = 0;
	pthread_mutex_lock(&lock);
	*region = find(pd, lent, access);
	if (*region == NULL) {
		const struct ffs_declared *declared =
			shared ? find_declared(lent->memory, lent->bytes) : NULL;
		if (declared != NULL) {
			wanted.lent.memory = declared->memory;
			wanted.lent.bytes = declared->bytes;
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
