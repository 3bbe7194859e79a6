/* See crc32c.h. Source: RFC 3720 appendix B.4 (vectors); Intel SDM and Arm ARM for the
 * instructions; Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ
 * Instruction" (Intel, 2009) for folding. */
#include "core/crc32c.h"

#include <stdatomic.h>
#include <string.h>

#include "core/crc_tables.h"
#include "core/frame.h"
#include "core/limits.h"
#include "core/mix64.h"

#define LANES FFS_CRC_LANES

/* `update` works on the raw register: the caller complements before and after. */
struct crc_ops {
	const char *name;
	bool (*usable)(void);
	uint32_t (*update)(uint32_t crc, const uint8_t *data, size_t length);
	void (*update_lanes)(uint32_t crc[LANES], const uint8_t *const data[LANES]); /* whole blocks */
};

/* ------------------------------------------------------------------ tables, eight bytes a step */

static struct ffs_crc_tables tables = {.polynomial = 0x82F63B78u}; /* Castagnoli */

static bool software_usable(void)
{
	return true;
}

static uint32_t software_update(uint32_t crc, const uint8_t *data, size_t length)
{
	return ffs_crc_tables_update(&tables, crc, data, length);
}

static void software_lanes(uint32_t crc[LANES], const uint8_t *const data[LANES])
{
	for (size_t lane = 0; lane < LANES; lane++)
		crc[lane] = software_update(crc[lane], data[lane], FFS_BLOCK_BYTES);
}

/* --------------------------------------------------------------------------------------- SSE4.2 */

#if defined(__x86_64__)
#include <nmmintrin.h>
#define HARDWARE_NAME "sse42"
#define HARDWARE_CODE __attribute__((target("sse4.2")))
#define CRC_U8(crc, value) _mm_crc32_u8((crc), (value))
#define CRC_U64(crc, value) ((uint32_t)_mm_crc32_u64((crc), (value)))

static bool hardware_usable(void)
{
	return __builtin_cpu_supports("sse4.2") != 0;
}

/* ---------------------------------------------------------------------------------------- ARMv8 */

#elif defined(__aarch64__)
#include <sys/auxv.h>
#define HARDWARE_NAME "armv8"
#define HARDWARE_CODE
#define CRC_U8(crc, value) arm_crc_u8((crc), (value))
#define CRC_U64(crc, value) arm_crc_u64((crc), (value))
#define HWCAP_CRC32_BIT (1ul << 7)

/* By hand: the compilers' headers declare these only if the whole file is built for such CPUs. */
static inline uint32_t arm_crc_u8(uint32_t crc, uint8_t value)
{
	__asm__(".arch_extension crc\n\tcrc32cb %w0, %w0, %w1" : "+r"(crc) : "r"(value));
	return crc;
}

static inline uint32_t arm_crc_u64(uint32_t crc, uint64_t value)
{
	__asm__(".arch_extension crc\n\tcrc32cx %w0, %w0, %x1" : "+r"(crc) : "r"(value));
	return crc;
}

static bool hardware_usable(void)
{
	return (getauxval(AT_HWCAP) & HWCAP_CRC32_BIT) != 0;
}
#endif

#if defined(HARDWARE_NAME)
HARDWARE_CODE static uint32_t hardware_update(uint32_t crc, const uint8_t *data, size_t length)
{
	for (; length >= 8; data += 8, length -= 8)
		crc = CRC_U64(crc, ffs_load_u64(data));
	for (; length > 0; data++, length--)
		crc = CRC_U8(crc, *data);
	return crc;
}

HARDWARE_CODE static void hardware_lanes(uint32_t crc[LANES], const uint8_t *const data[LANES])
{
	const uint8_t *at0 = data[0], *at1 = data[1], *at2 = data[2], *at3 = data[3];
	uint32_t crc0 = crc[0], crc1 = crc[1], crc2 = crc[2], crc3 = crc[3];
	for (size_t i = 0; i < FFS_BLOCK_BYTES; i += 8) {
		crc0 = CRC_U64(crc0, ffs_load_u64(at0 + i));
		crc1 = CRC_U64(crc1, ffs_load_u64(at1 + i));
		crc2 = CRC_U64(crc2, ffs_load_u64(at2 + i));
		crc3 = CRC_U64(crc3, ffs_load_u64(at3 + i));
	}
	crc[0] = crc0, crc[1] = crc1, crc[2] = crc2, crc[3] = crc3;
}
#endif

/* ------------------------------------------------------------------------- AVX-512, VPCLMULQDQ */

/*
 * Four registers of 64 bytes run over the data, 256 bytes a step: what lies d bits back counts as
 * itself times x^d. A carry-less product of 64 of its bits and a constant does that and stays below
 * 128 bits: of every 16 bytes the first half takes x^(d+32) mod P, the second x^(d-32) mod P, bits
 * reversed and shifted up by one. The last 16 bytes are left to the CRC instruction.
 */
#if defined(__x86_64__)
#include <immintrin.h>
#define VECTOR_CODE __attribute__((target("avx512f,vpclmulqdq,sse4.2")))
#define STRIDE 256u /* bytes a step */

static const uint64_t fold_256[2] = {0xdcb17aa4, 0xb9e02b86}; /* by d = 8 * 256 */
static const uint64_t fold_128[2] = {0x6992cea2, 0x0d3b6092};
static const uint64_t fold_64[2] = {0x740eef02, 0x9e4addf8};
/* Each quarter of a register to where the last one is: by 48, 32, 16 bytes; the last is dropped. */
static const uint64_t fold_quarters[8] = {0x1c291d04, 0x1d82c63da, 0x1384aa63a, 0xba4fc28e,
                                          0xf20c0dfe, 0x14cd00bd6, 0,           0};

/* Both ask for the operating system's part as well: that it saves the registers. */
static bool vector_usable(void)
{
	return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("vpclmulqdq") != 0 &&
	       hardware_usable();
}

VECTOR_CODE static inline __m512i load(const uint8_t *data)
{
	return _mm512_loadu_si512(data);
}

VECTOR_CODE static inline __m512i constant(const uint64_t fold[2])
{
	return _mm512_set_epi64((int64_t)fold[1], (int64_t)fold[0], (int64_t)fold[1], (int64_t)fold[0],
	                        (int64_t)fold[1], (int64_t)fold[0], (int64_t)fold[1], (int64_t)fold[0]);
}

/* `behind` brought forward by what `by` stands for, and the bytes that are there. */
VECTOR_CODE static inline __m512i fold(__m512i behind, __m512i by, __m512i there)
{
	__m512i first = _mm512_clmulepi64_epi128(behind, by, 0x00);
	__m512i second = _mm512_clmulepi64_epi128(behind, by, 0x11);
	return _mm512_ternarylogic_epi64(first, second, there, 0x96); /* all three, xor */
}

/* The CRC register after the 64 bytes. */
VECTOR_CODE static inline uint32_t reduce(__m512i bytes)
{
	__m512i moved = fold(bytes, _mm512_loadu_si512(fold_quarters), _mm512_setzero_si512());
	__m256i half =
		_mm256_xor_si256(_mm512_castsi512_si256(moved), _mm512_extracti64x4_epi64(moved, 1));
	__m128i quarter =
		_mm_xor_si128(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
	quarter = _mm_xor_si128(quarter, _mm512_extracti32x4_epi32(bytes, 3));
	uint32_t crc = CRC_U64(0, (uint64_t)_mm_cvtsi128_si64(quarter));
	return CRC_U64(crc, (uint64_t)_mm_extract_epi64(quarter, 1));
}

VECTOR_CODE static uint32_t vector_update(uint32_t crc, const uint8_t *data, size_t length)
{
	if (length < STRIDE)
		return hardware_update(crc, data, length);
	__m512i by = constant(fold_256);
	__m512i front = _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc));
	__m512i at0 = _mm512_xor_si512(load(data), front), at1 = load(data + 64);
	__m512i at2 = load(data + 128), at3 = load(data + 192);
	for (data += STRIDE, length -= STRIDE; length >= STRIDE; data += STRIDE, length -= STRIDE) {
		at0 = fold(at0, by, load(data));
		at1 = fold(at1, by, load(data + 64));
		at2 = fold(at2, by, load(data + 128));
		at3 = fold(at3, by, load(data + 192));
	}
	by = constant(fold_64);
	at1 = fold(at0, by, at1);
	at3 = fold(at2, by, at3);
	at3 = fold(at1, constant(fold_128), at3);
	return hardware_update(reduce(at3), data, length);
}

VECTOR_CODE static void vector_lanes(uint32_t crc[LANES], const uint8_t *const data[LANES])
{
	for (size_t lane = 0; lane < LANES; lane++)
		crc[lane] = vector_update(crc[lane], data[lane], FFS_BLOCK_BYTES);
}
#endif

/* ------------------------------------------------------------------------------------- choosing */

static const struct crc_ops implementations[] = {
#if defined(__x86_64__)
	{"avx512", vector_usable, vector_update, vector_lanes},
#endif
#if defined(HARDWARE_NAME)
	{HARDWARE_NAME, hardware_usable, hardware_update, hardware_lanes},
#endif
	{"software", software_usable, software_update, software_lanes},
};
#define IMPLEMENTATIONS (sizeof(implementations) / sizeof(implementations[0]))

static _Atomic(const struct crc_ops *) active;

static const struct crc_ops *best(void)
{
	size_t i = 0;
	while (!implementations[i].usable())
		i++; /* the last one is always usable */
	return &implementations[i];
}

static inline const struct crc_ops *ops(void)
{
	const struct crc_ops *chosen = atomic_load_explicit(&active, memory_order_relaxed);
	if (__builtin_expect(chosen == NULL, 0)) {
		chosen = best();
		atomic_store_explicit(&active, chosen, memory_order_relaxed);
	}
	return chosen;
}

const char *ffs_crc32c_name(void)
{
	return ops()->name;
}

bool ffs_crc32c_force(const char *name)
{
	if (strcmp(name, "auto") == 0) {
		atomic_store_explicit(&active, best(), memory_order_relaxed);
		return true;
	}
	for (size_t i = 0; i < IMPLEMENTATIONS; i++) {
		if (strcmp(name, implementations[i].name) != 0 || !implementations[i].usable())
			continue;
		atomic_store_explicit(&active, &implementations[i], memory_order_relaxed);
		return true;
	}
	return false;
}

/* --------------------------------------------------------------------------------------- public */

uint32_t ffs_crc32c(uint32_t init, const void *data, size_t length)
{
	return ~ops()->update(~init, data, length);
}

void ffs_crc32c_lanes(const uint8_t *const data[LANES], const uint32_t init[LANES],
                      uint32_t crcs[LANES])
{
	for (size_t lane = 0; lane < LANES; lane++)
		crcs[lane] = ~init[lane];
	ops()->update_lanes(crcs, data);
	for (size_t lane = 0; lane < LANES; lane++)
		crcs[lane] = ~crcs[lane];
}

/* Four whole neighbouring blocks, each from its own start value. */
static void quad(const struct crc_ops *crc, const uint8_t *data, uint64_t blob, uint32_t chunk,
                 uint32_t first_block, uint32_t result[LANES])
{
	const uint8_t *at[LANES];
	for (uint32_t lane = 0; lane < LANES; lane++) {
		at[lane] = data + (size_t)lane * FFS_BLOCK_BYTES;
		result[lane] = ~ffs_block_seed(blob, chunk, first_block + lane);
	}
	crc->update_lanes(result, at);
	for (uint32_t lane = 0; lane < LANES; lane++)
		result[lane] = ~result[lane];
}

/* The next block of `data`, perhaps a short one. */
static uint32_t single(const struct crc_ops *crc, const uint8_t *data, size_t length, uint64_t blob,
                       uint32_t chunk, uint32_t block)
{
	return ~crc->update(~ffs_block_seed(blob, chunk, block), data, length);
}

static inline size_t block_bytes(size_t length)
{
	return length < FFS_BLOCK_BYTES ? length : FFS_BLOCK_BYTES;
}

void ffs_crc32c_blocks(const void *data, size_t length, uint64_t blob, uint32_t chunk,
                       uint32_t first_block, uint32_t *crcs)
{
	const struct crc_ops *crc = ops();
	const uint8_t *at = data;
	uint32_t block = first_block;
	for (; length >= LANES * FFS_BLOCK_BYTES; length -= LANES * FFS_BLOCK_BYTES) {
		quad(crc, at, blob, chunk, block, crcs);
		at += LANES * FFS_BLOCK_BYTES, block += LANES, crcs += LANES;
	}
	while (length > 0) {
		size_t step = block_bytes(length);
		*crcs++ = single(crc, at, step, blob, chunk, block++);
		at += step, length -= step;
	}
}

size_t ffs_crc32c_check(const void *data, size_t length, uint64_t blob, uint32_t chunk,
                        uint32_t first_block, const uint8_t *wire_crcs)
{
	const struct crc_ops *crc = ops();
	const uint8_t *at = data;
	size_t done = 0;
	for (; length >= LANES * FFS_BLOCK_BYTES; length -= LANES * FFS_BLOCK_BYTES) {
		uint32_t got[LANES];
		quad(crc, at, blob, chunk, first_block + (uint32_t)done, got);
		for (size_t lane = 0; lane < LANES; lane++, done++)
			if (got[lane] != ffs_load_u32(wire_crcs + 4 * done))
				return done;
		at += LANES * FFS_BLOCK_BYTES;
	}
	for (; length > 0; done++) {
		size_t step = block_bytes(length);
		uint32_t got = single(crc, at, step, blob, chunk, first_block + (uint32_t)done);
		if (got != ffs_load_u32(wire_crcs + 4 * done))
			return done;
		at += step, length -= step;
	}
	return done;
}
