/*
 * What the fuzz targets share. A target takes one input, which holds everything that the far side
 * says, and returns; a broken promise ends the process, as a sanitizer's finding does.
 *
 *   libFuzzer (clang) or replay.c (any compiler) -> LLVMFuzzerTestOneInput -> the code as shipped
 *
 * Targets run the code of native/ unchanged. Where it waits, in poll or epoll_wait, a wrapper of
 * the linker steps in and plays the far side, so that one thread does everything and an input does
 * the same thing each time.
 *
 * Almost every input that is mutated blindly dies at the first checksum. `ffs_fuzz_fix` makes the
 * checksums of an input hold again; mutate.c calls it for most mutations.
 */
#ifndef FFS_FUZZ_FUZZ_H
#define FFS_FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define FFS_FUZZ_INPUT_BYTES_MAX (64u << 10)

#define FFS_PROMISE(condition)                                                                     \
	do {                                                                                           \
		if (!(condition)) {                                                                        \
			(void)fprintf(stderr, "%s:%d: broken promise: %s\n", __FILE__, __LINE__, #condition);  \
			abort();                                                                               \
		}                                                                                          \
	} while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

/* Make what has to hold by arithmetic alone hold again, in place. */
void ffs_fuzz_fix(uint8_t *data, size_t size);

/* The same for a stream of frames of the data port. A GRANT among them is signed, by this key of
 * zeros, for a token whose id is zeros, and is over in a long time. */
#define FFS_FUZZ_GRANT_KEY_ID 1u
void ffs_fuzz_fix_frames(uint8_t *stream, size_t size);

/*
 * Size of the next piece, `number` from 0, of a stream that is sent in pieces as `how` says. 0
 * sends all at once; what is left after FFS_FUZZ_PIECES_MAX goes together, since each costs system
 * calls.
 */
#define FFS_FUZZ_PIECES_MAX 64u
size_t ffs_fuzz_piece(uint8_t how, uint32_t number, size_t left);

/* A new directory in TMPDIR for the target's files; removed when the process ends in order. */
const char *ffs_fuzz_directory(void);
void ffs_fuzz_empty_directory(const char *path);

#endif
