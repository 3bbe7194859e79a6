#include "storage/residency.h"

#include <errno.h>
#include <string.h>

#include "core/sys.h"

/*
 * What a chunk remembers (`seen`): when it was asked about, in units of 2^26 ns modulo 2^15 - 1,
 * and in the lowest bit whether all of it was there. After 37 minutes a unit comes back: a chunk
 * not read since may then pass for resident, which is what an eviction does, too.
 */
#define UNIT_SHIFT 26
#define UNITS 0x7FFFu
#define PARTIAL_UNITS 16u
#define CALM_UNITS 16u
#define CALM_CHUNKS 256u
#define DISTRUSTED 0xFFFFu
#define MINCORE_PAGES 1024u

static _Atomic(enum ffs_residency_means) first_means = FFS_MEANS_CACHESTAT;

enum ffs_residency_means ffs_residency_first_means(void)
{
	return atomic_load(&first_means);
}

void ffs_residency_force(enum ffs_residency_means means)
{
	atomic_store(&first_means, means);
}

/* Chunks that have kept their pages since the last one that had not. */
static atomic_uint kept;

static void note_kept(bool resident)
{
	uint32_t before = atomic_load_explicit(&kept, memory_order_relaxed);
	if (!resident)
		atomic_store_explicit(&kept, 0, memory_order_relaxed);
	else if (before < CALM_CHUNKS)
		atomic_store_explicit(&kept, before + 1, memory_order_relaxed);
}

static uint32_t units_to_trust(void)
{
	return atomic_load_explicit(&kept, memory_order_relaxed) < CALM_CHUNKS ? 1 : CALM_UNITS;
}

struct span {
	enum ffs_class_file file;
	uint64_t offset;
	uint64_t bytes;
};

static uint64_t page_bytes(void)
{
	return (uint64_t)getpagesize();
}

static int ask_cachestat(const struct ffs_class *class, const struct span *span, bool *resident)
{
	uint64_t cached;
	uint64_t page = page_bytes();
	uint64_t pages = (span->offset + span->bytes - 1) / page - span->offset / page + 1;
	if (ffs_sys_cachestat(class->fds[span->file], span->offset, span->bytes, &cached) != 0)
		return -errno;
	*resident = cached == pages;
	return 0;
}

static int ask_mincore(struct ffs_class *class, const struct span *span, bool *resident)
{
	unsigned char pages[MINCORE_PAGES];
	uint64_t page = page_bytes();
	uint64_t at = span->offset - span->offset % page;
	uint64_t end = span->offset + span->bytes;
	const uint8_t *bytes = ffs_mapping_at(&class->maps[span->file], class->fds[span->file], at);
	if (bytes == NULL)
		return -ENODEV;
	*resident = true;
	while (*resident && at < end) {
		uint64_t left = end - at;
		size_t step = left < page * MINCORE_PAGES ? (size_t)left : (size_t)page * MINCORE_PAGES;
		size_t count = (step + (size_t)page - 1) / (size_t)page;
		if (ffs_sys_mincore(bytes, step, pages) != 0)
			return -errno;
		for (size_t i = 0; i < count; i++)
			*resident &= (pages[i] & 1) != 0;
		bytes += step;
		at += step;
	}
	return 0;
}

/* Ask by the best means that works here; what does not is not tried again in this class. */
static enum ffs_residency ask(struct ffs_class *class, const struct span *span)
{
	bool resident = false;
	if (span->bytes == 0)
		return FFS_RESIDENT;
	uint8_t means = atomic_load_explicit(&class->means, memory_order_relaxed);
	for (; means != FFS_MEANS_NONE; means++) {
		int result = means == FFS_MEANS_CACHESTAT ? ask_cachestat(class, span, &resident)
		                                          : ask_mincore(class, span, &resident);
		if (result == 0)
			return resident ? FFS_RESIDENT : FFS_NOT_RESIDENT;
		bool lasting = result == -ENOSYS || result == -EPERM || result == -EOPNOTSUPP;
		if (lasting)
			atomic_store_explicit(&class->means, (uint8_t)(means + 1), memory_order_relaxed);
	}
	return FFS_RESIDENCY_UNKNOWN;
}

static enum ffs_residency ask_both(struct ffs_class *class, const struct span *data,
                                   const struct span *crcs)
{
	enum ffs_residency answer = ask(class, data);
	return answer == FFS_RESIDENT ? ask(class, crcs) : answer;
}

static enum ffs_residency ask_range(const struct ffs_range *range)
{
	struct span data = {FFS_FILE_DATA, range->data_offset, range->bytes};
	struct span crcs = {FFS_FILE_CRC, range->crc_offset, range->crc_blocks * sizeof(uint32_t)};
	return ask_both(range->class, &data, &crcs);
}

static enum ffs_residency ask_chunk(const struct ffs_range *range)
{
	const struct ffs_chunk *chunk = range->chunk;
	const struct ffs_class *class = range->class;
	uint64_t blocks = (chunk->length + FFS_BLOCK_BYTES - 1) / FFS_BLOCK_BYTES;
	struct span data = {FFS_FILE_DATA, chunk->slot * ffs_class_stride(class, FFS_FILE_DATA),
	                    chunk->length};
	struct span crcs = {FFS_FILE_CRC, chunk->slot * ffs_class_stride(class, FFS_FILE_CRC),
	                    blocks * sizeof(uint32_t)};
	return ask_both(range->class, &data, &crcs);
}

enum ffs_residency ffs_residency_of(const struct ffs_range *range, uint64_t now_ns)
{
	struct ffs_chunk *chunk = range->chunk;
	uint32_t unit = (uint32_t)((now_ns >> UNIT_SHIFT) % UNITS);
	uint32_t seen = atomic_load_explicit(&chunk->seen, memory_order_relaxed);
	if (seen == DISTRUSTED)
		return FFS_RESIDENCY_UNKNOWN;
	uint32_t age = (unit + UNITS - (seen >> 1)) % UNITS;
	if ((seen & 1) != 0 && age < units_to_trust())
		return FFS_RESIDENT;
	if ((seen & 1) == 0 && age < PARTIAL_UNITS && seen != 0)
		return ask_range(range);
	enum ffs_residency whole = ask_chunk(range);
	if (whole == FFS_RESIDENCY_UNKNOWN)
		return whole;
	if ((seen & 1) != 0)
		note_kept(whole == FFS_RESIDENT);
	uint16_t note = (uint16_t)(unit << 1 | (whole == FFS_RESIDENT));
	uint16_t before = (uint16_t)seen;
	/* Not if another thread has come to distrust it meanwhile. */
	(void)atomic_compare_exchange_strong_explicit(&chunk->seen, &before, note, memory_order_relaxed,
	                                              memory_order_relaxed);
	return whole == FFS_RESIDENT ? whole : ask_range(range);
}

void ffs_residency_distrust(struct ffs_chunk *chunk)
{
	atomic_store_explicit(&chunk->seen, DISTRUSTED, memory_order_relaxed);
}

bool ffs_residency_distrusted(const struct ffs_chunk *chunk)
{
	return atomic_load_explicit(&chunk->seen, memory_order_relaxed) == DISTRUSTED;
}
