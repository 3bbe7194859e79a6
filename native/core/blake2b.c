/* See blake2b.h. A state of eight words takes in blocks of 128 bytes, the key's first. */
#include "core/blake2b.h"

#include <string.h>

#include "core/frame.h"

#define BLOCK_BYTES 128u
#define ROUNDS 12
#define WORDS 16

static const uint64_t initial[8] = {
	UINT64_C(0x6a09e667f3bcc908), UINT64_C(0xbb67ae8584caa73b), UINT64_C(0x3c6ef372fe94f82b),
	UINT64_C(0xa54ff53a5f1d36f1), UINT64_C(0x510e527fade682d1), UINT64_C(0x9b05688c2b3e6c1f),
	UINT64_C(0x1f83d9abfb41bd6b), UINT64_C(0x5be0cd19137e2179),
};

/* In which order a round takes the block's words; the last two rounds repeat the first two. */
static const uint8_t order[10][WORDS] = {
	{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
	{14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
	{11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4},
	{7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
	{9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13},
	{2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
	{12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11},
	{13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
	{6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5},
	{10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
};

static uint64_t rotate(uint64_t value, unsigned int by)
{
	return value >> by | value << (64 - by);
}

static void mix(uint64_t *v, int a, int b, int c, int d, uint64_t x, uint64_t y)
{
	v[a] += v[b] + x;
	v[d] = rotate(v[d] ^ v[a], 32);
	v[c] += v[d];
	v[b] = rotate(v[b] ^ v[c], 24);
	v[a] += v[b] + y;
	v[d] = rotate(v[d] ^ v[a], 16);
	v[c] += v[d];
	v[b] = rotate(v[b] ^ v[c], 63);
}

/* `taken`: bytes so far, this block's included. */
static void take_block(uint64_t state[8], const uint8_t block[BLOCK_BYTES], uint64_t taken,
                       bool last)
{
	uint64_t words[WORDS];
	uint64_t v[WORDS];
	for (size_t i = 0; i < WORDS; i++)
		words[i] = ffs_load_u64(block + 8 * i);
	memcpy(v, state, 8 * sizeof(*v));
	memcpy(v + 8, initial, sizeof(initial));
	v[12] ^= taken;
	if (last)
		v[14] = ~v[14];
	for (size_t round = 0; round < ROUNDS; round++) {
		const uint8_t *at = order[round % 10];
		for (int i = 0; i < 4; i++)
			mix(v, i, 4 + i, 8 + i, 12 + i, words[at[2 * i]], words[at[2 * i + 1]]);
		for (int i = 0; i < 4; i++)
			mix(v, i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4, words[at[8 + 2 * i]],
			    words[at[9 + 2 * i]]);
	}
	for (size_t i = 0; i < 8; i++)
		state[i] ^= v[i] ^ v[i + 8];
}

void ffs_mac(uint8_t out[FFS_MAC_BYTES], const uint8_t key[FFS_MAC_KEY_BYTES], const uint8_t *bytes,
             size_t count)
{
	uint64_t state[8];
	uint8_t block[BLOCK_BYTES] = {0};
	uint64_t taken = BLOCK_BYTES;
	memcpy(state, initial, sizeof(state));
	state[0] ^= UINT64_C(0x01010000) ^ FFS_MAC_KEY_BYTES << 8 ^ FFS_MAC_BYTES;
	memcpy(block, key, FFS_MAC_KEY_BYTES);
	take_block(state, block, taken, count == 0);
	while (count > 0) {
		size_t part = count < BLOCK_BYTES ? count : BLOCK_BYTES;
		memset(block, 0, sizeof(block));
		memcpy(block, bytes, part);
		bytes += part;
		count -= part;
		taken += part;
		take_block(state, block, taken, count == 0);
	}
	for (size_t i = 0; i < FFS_MAC_BYTES / 8; i++)
		ffs_store_u64(out + 8 * i, state[i]);
}

bool ffs_mac_equal(const uint8_t one[FFS_MAC_BYTES], const uint8_t other[FFS_MAC_BYTES])
{
	uint8_t different = 0;
	for (size_t i = 0; i < FFS_MAC_BYTES; i++)
		different |= one[i] ^ other[i];
	return different == 0;
}
