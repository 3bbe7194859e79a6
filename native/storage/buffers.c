#include "storage/buffers.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "core/limits.h"
#include "core/sys.h"

void ffs_buffers_init(struct ffs_buffers *buffers, uint64_t limit_bytes, struct ffs_arena *arena,
                      uint32_t loop_count, void (*kick)(void *, uint32_t), void *kick_context)
{
	memset(buffers, 0, sizeof(*buffers));
	pthread_mutex_init(&buffers->lock, NULL);
	buffers->limit_bytes = limit_bytes;
	buffers->lone_bytes = limit_bytes;
	buffers->arena = arena;
	buffers->loop_count = loop_count;
	buffers->kick = kick;
	buffers->kick_context = kick_context;
	for (uint32_t i = 0; i < FFS_LOOPS_MAX; i++)
		buffers->oldest[i] = FFS_NO_TICKET;
}

void ffs_buffers_admit(struct ffs_buffers *buffers, uint64_t lone_bytes)
{
	buffers->lone_bytes = lone_bytes;
}

static uint64_t size_of(uint32_t size_index)
{
	return (uint64_t)FFS_BLOCK_BYTES << size_index;
}

static void *pop_kept(struct ffs_buffers *buffers, uint32_t size_index)
{
	void *bytes = buffers->kept[size_index];
	if (bytes != NULL) {
		memcpy(&buffers->kept[size_index], bytes, sizeof(void *));
		buffers->kept_bytes -= size_of(size_index);
		if (buffers->kept_bytes < buffers->unused_bytes)
			buffers->unused_bytes = buffers->kept_bytes;
	}
	return bytes;
}

/* Let go of kept buffers until no more than `bytes` are left. */
static void trim(struct ffs_buffers *buffers, uint64_t bytes)
{
	for (uint32_t i = FFS_BUFFER_SIZES; i-- > 0 && buffers->kept_bytes > bytes;) {
		while (buffers->kept[i] != NULL && buffers->kept_bytes > bytes)
			free(pop_kept(buffers, i));
	}
}

void ffs_buffers_fini(struct ffs_buffers *buffers)
{
	trim(buffers, 0);
	pthread_mutex_destroy(&buffers->lock);
}

/* The loop with the oldest ticket, FFS_LOOPS_MAX if nobody waits. */
static uint32_t oldest_loop(const struct ffs_buffers *buffers)
{
	uint32_t found = FFS_LOOPS_MAX;
	uint64_t oldest = FFS_NO_TICKET;
	for (uint32_t i = 0; i < buffers->loop_count; i++) {
		if (buffers->oldest[i] < oldest) {
			oldest = buffers->oldest[i];
			found = i;
		}
	}
	return found;
}

static uint32_t size_index_for(uint32_t length)
{
	uint32_t index = 0;
	while (size_of(index) < length)
		index++;
	return index;
}

uint64_t ffs_buffer_bytes(const struct ffs_buffer *buffer)
{
	return size_of(buffer->size_index);
}

int ffs_buffers_map(struct ffs_buffers *buffers)
{
	pthread_mutex_lock(&buffers->lock);
	int error = ffs_arena_map(buffers->arena);
	pthread_mutex_unlock(&buffers->lock);
	return error;
}

/* A buffer that fits into the limit; with the lock held. */
static enum ffs_buffer_result take_locked(struct ffs_buffers *buffers, uint32_t size_index,
                                          void **bytes)
{
	uint64_t size = size_of(size_index);
	if (buffers->arena != NULL) {
		if (ffs_arena_map(buffers->arena) != 0)
			return FFS_BUFFER_NEVER;
		*bytes = ffs_arena_take(buffers->arena, size_index);
		if (*bytes == NULL) /* in pieces that are too small */
			return FFS_BUFFER_WAIT;
		buffers->used_bytes += size;
		return FFS_BUFFER_GIVEN;
	}
	*bytes = pop_kept(buffers, size_index);
	buffers->used_bytes += size;
	uint64_t limit = buffers->limit_bytes;
	if (buffers->used_bytes + buffers->kept_bytes > limit)
		trim(buffers, limit > buffers->used_bytes ? limit - buffers->used_bytes : 0);
	return FFS_BUFFER_GIVEN;
}

enum ffs_buffer_result ffs_buffers_take(struct ffs_buffers *buffers, uint32_t length,
                                        uint64_t ticket, struct ffs_buffer *buffer)
{
	assert(length <= FFS_CHUNK_BYTES_MAX);
	uint32_t size_index = size_index_for(length);
	uint64_t size = size_of(size_index);
	enum ffs_buffer_result result = FFS_BUFFER_GIVEN;
	void *bytes = NULL;
	if (size > buffers->lone_bytes || (buffers->arena != NULL && size > FFS_ARENA_PIECE_BYTES_MAX))
		return FFS_BUFFER_NEVER;
	pthread_mutex_lock(&buffers->lock);
	uint32_t first = oldest_loop(buffers);
	uint64_t oldest = first == FFS_LOOPS_MAX ? FFS_NO_TICKET : buffers->oldest[first];
	/* Tickets start at 0, so nobody without one is ahead of somebody with one. */
	bool fits = buffers->used_bytes == 0 || buffers->used_bytes + size <= buffers->limit_bytes;
	if (oldest < ticket || !fits)
		result = FFS_BUFFER_WAIT;
	else
		result = take_locked(buffers, size_index, &bytes);
	pthread_mutex_unlock(&buffers->lock);
	if (result != FFS_BUFFER_GIVEN)
		return result;
	if (bytes == NULL)
		bytes = ffs_sys_aligned_alloc(FFS_BLOCK_BYTES, size);
	buffer->bytes = bytes;
	buffer->size_index = size_index;
	if (bytes != NULL)
		return FFS_BUFFER_GIVEN;
	ffs_buffers_give_back(buffers, buffer);
	return FFS_BUFFER_NEVER;
}

uint64_t ffs_buffers_ticket(struct ffs_buffers *buffers)
{
	pthread_mutex_lock(&buffers->lock);
	uint64_t ticket = buffers->next_ticket++;
	pthread_mutex_unlock(&buffers->lock);
	return ticket;
}

void ffs_buffers_set_oldest(struct ffs_buffers *buffers, uint32_t loop, uint64_t ticket)
{
	pthread_mutex_lock(&buffers->lock);
	buffers->oldest[loop] = ticket;
	uint32_t next = oldest_loop(buffers);
	pthread_mutex_unlock(&buffers->lock);
	/* The turn may have come for another loop's ticket; one's own loop looks anyway. */
	if (next != FFS_LOOPS_MAX)
		buffers->kick(buffers->kick_context, next);
}

void ffs_buffers_give_back(struct ffs_buffers *buffers, struct ffs_buffer *buffer)
{
	uint64_t size = size_of(buffer->size_index);
	void *bytes = buffer->bytes;
	buffer->bytes = NULL;
	pthread_mutex_lock(&buffers->lock);
	buffers->used_bytes -= size;
	if (buffers->arena != NULL && bytes != NULL) {
		ffs_arena_give_back(buffers->arena, bytes, buffer->size_index);
		bytes = NULL;
	}
	bool keep =
		bytes != NULL && buffers->used_bytes + buffers->kept_bytes + size <= buffers->limit_bytes;
	if (keep) {
		memcpy(bytes, &buffers->kept[buffer->size_index], sizeof(void *));
		buffers->kept[buffer->size_index] = bytes;
		buffers->kept_bytes += size;
	}
	uint32_t next = oldest_loop(buffers);
	pthread_mutex_unlock(&buffers->lock);
	if (!keep)
		free(bytes);
	if (next != FFS_LOOPS_MAX)
		buffers->kick(buffers->kick_context, next);
}

void ffs_buffers_settle(struct ffs_buffers *buffers)
{
	pthread_mutex_lock(&buffers->lock);
	trim(buffers, buffers->kept_bytes - buffers->unused_bytes);
	buffers->unused_bytes = buffers->kept_bytes;
	pthread_mutex_unlock(&buffers->lock);
}

uint64_t ffs_buffers_used(struct ffs_buffers *buffers)
{
	pthread_mutex_lock(&buffers->lock);
	uint64_t used = buffers->used_bytes;
	pthread_mutex_unlock(&buffers->lock);
	return used;
}

bool ffs_buffers_wanted(struct ffs_buffers *buffers)
{
	pthread_mutex_lock(&buffers->lock);
	bool wanted = oldest_loop(buffers) != FFS_LOOPS_MAX;
	pthread_mutex_unlock(&buffers->lock);
	return wanted;
}
