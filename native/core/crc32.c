/* See crc32.h. Source: Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ
 * Instruction" (Intel, 2009) for folding; Arm ARM for the instructions. */
#include "core/crc32.h"

#include <stdatomic.h>
#include <string.h>

#include "core/crc_tables.h"
#include "core/frame.h"

/* `update` works on the raw register: the caller complements before and after. */
struct crc_ops {
	const char *name;
	bool (*usable)(void);
	uint32_t (*update)(uint32_t crc, const uint8_t *data, size_t length);
};

static struct ffs_crc_tables tables = {.polynomial = 0xEDB88320u};

static bool software_usable(void)
{
	return true;
}

static uint32_t software_update(uint32_t crc, const uint8_t *data, size_t length)
{
	return ffs_crc_tables_update(&tables, crc, data, length);
}

/* ---------------------------------------------------------------------- carry-less multiplication
 */

/*
 * Four registers of 16 bytes run over the data, 64 bytes a step: what lies d bits back counts as
 * itself times x^d. Of every 16 bytes the first half is multiplied by x^(d+32) mod P, the second by
 * x^(d-32) mod P, bits reversed and shifted up by one, which keeps the products below 128 bits. The
 * last 16 bytes are left to the tables.
 */
#if defined(__x86_64__)
#include <emmintrin.h>
#include <smmintrin.h>
#include <wmmintrin.h>
#define HARDWARE_NAME "pclmul"
#define HARDWARE_CODE __attribute__((target("pclmul,sse4.1")))
#define STRIDE 64u /* bytes a step */

static const uint64_t fold_64[2] = {0x154442bd4, 0x1c6e41596}; /* by d = 8 * 64 */
static const uint64_t fold_16[2] = {0x1751997d0, 0x0ccaa009e};

static bool hardware_usable(void)
{
	return __builtin_cpu_supports("pclmul") != 0 && __builtin_cpu_supports("sse4.1") != 0;
}

HARDWARE_CODE static inline __m128i load(const uint8_t *data)
{
	return _mm_loadu_si128((const __m128i *)(const void *)data);
}

HARDWARE_CODE static inline __m128i constant(const uint64_t fold[2])
{
	return _mm_set_epi64x((int64_t)fold[1], (int64_t)fold[0]);
}

/* `behind` brought forward by what `by` stands for, and the bytes that are there. */
HARDWARE_CODE static inline __m128i fold(__m128i behind, __m128i by, __m128i there)
{
	__m128i first = _mm_clmulepi64_si128(behind, by, 0x00);
	__m128i second = _mm_clmulepi64_si128(behind, by, 0x11);
	return _mm_xor_si128(_mm_xor_si128(first, second), there);
}

HARDWARE_CODE static uint32_t hardware_update(uint32_t crc, const uint8_t *data, size_t length)
{
	if (length < STRIDE)
		return software_update(crc, data, length);
	uint8_t last[16];
	__m128i by = constant(fold_64);
	__m128i at0 = _mm_xor_si128(load(data), _mm_cvtsi32_si128((int)crc)), at1 = load(data + 16);
	__m128i at2 = load(data + 32), at3 = load(data + 48);
	for (data += STRIDE, length -= STRIDE; length >= STRIDE; data += STRIDE, length -= STRIDE) {
		at0 = fold(at0, by, load(data));
		at1 = fold(at1, by, load(data + 16));
		at2 = fold(at2, by, load(data + 32));
		at3 = fold(at3, by, load(data + 48));
	}
	by = constant(fold_16);
	at3 = fold(fold(fold(at0, by, at1), by, at2), by, at3);
	for (; length >= sizeof(last); data += sizeof(last), length -= sizeof(last))
		at3 = fold(at3, by, load(data));
	_mm_storeu_si128((__m128i *)(void *)last, at3);
	return software_update(software_update(0, last, sizeof(last)), data, length);
}

/* ---------------------------------------------------------------------------------------- ARMv8 */

#elif defined(__aarch64__)
#include <sys/auxv.h>
#define HARDWARE_NAME "armv8"
#define HWCAP_CRC32_BIT (1ul << 7)

/* By hand: the compilers' headers declare these only if the whole file is built for such CPUs. */
static inline uint32_t arm_crc_u8(uint32_t crc, uint8_t value)
{
	__asm__(".arch_extension crc\n\tcrc32b %w0, %w0, %w1" : "+r"(crc) : "r"(value));
	return crc;
}

static inline uint32_t arm_crc_u64(uint32_t crc, uint64_t value)
{
	__asm__(".arch_extension crc\n\tcrc32x %w0, %w0, %x1" : "+r"(crc) : "r"(value));
	return crc;
}

static bool hardware_usable(void)
{
	return (getauxval(AT_HWCAP) & HWCAP_CRC32_BIT) != 0;
}

static uint32_t hardware_update(uint32_t crc, const uint8_t *data, size_t length)
{
	for (; length >= 8; data += 8, length -= 8)
		crc = arm_crc_u64(crc, ffs_load_u64(data));
	for (; length > 0; data++, length--)
		crc = arm_crc_u8(crc, *data);
	return crc;
}
#endif

/* ------------------------------------------------------------------------------------- choosing */

static const struct crc_ops implementations[] = {
#if defined(HARDWARE_NAME)
	{HARDWARE_NAME, hardware_usable, hardware_update},
#endif
	{"software", software_usable, software_update},
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

static const struct crc_ops *ops(void)
{
	const struct crc_ops *chosen = atomic_load_explicit(&active, memory_order_relaxed);
	if (chosen == NULL) {
		chosen = best();
		atomic_store_explicit(&active, chosen, memory_order_relaxed);
	}
	return chosen;
}

const char *ffs_crc32_name(void)
{
	return ops()->name;
}

bool ffs_crc32_force(const char *name)
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

uint32_t ffs_crc32(uint32_t init, const void *data, size_t length)
{
	return ~ops()->update(~init, data, length);
}
