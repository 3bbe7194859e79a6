/*
 * Keyed BLAKE2b with a digest of 32 bytes: a MAC. hashlib.blake2b(key=, digest_size=32) in Python.
 *
 * Threads: any. Copies: none. Source: RFC 7693.
 */
#ifndef FFS_CORE_BLAKE2B_H
#define FFS_CORE_BLAKE2B_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FFS_MAC_BYTES 32u
#define FFS_MAC_KEY_BYTES 32u

void ffs_mac(uint8_t out[FFS_MAC_BYTES], const uint8_t key[FFS_MAC_KEY_BYTES], const uint8_t *bytes,
             size_t count);

/* Whether both are the same, in a time that does not tell where they differ. */
bool ffs_mac_equal(const uint8_t one[FFS_MAC_BYTES], const uint8_t other[FFS_MAC_BYTES]);

#endif
