/* Run a target over files, with any compiler: a corpus again, or the input of a crash. */
#include "fuzz/fuzz.h"

static uint8_t *read_all(const char *path, size_t *size)
{
	FILE *file = fopen(path, "rb");
	if (file == NULL)
		return NULL;
	uint8_t *data = malloc(FFS_FUZZ_INPUT_BYTES_MAX);
	*size = data == NULL ? 0 : fread(data, 1, FFS_FUZZ_INPUT_BYTES_MAX, file);
	(void)fclose(file);
	return data;
}

int main(int argc, char **argv)
{
	(void)LLVMFuzzerInitialize(&argc, &argv);
	for (int i = 1; i < argc; i++) {
		size_t size;
		uint8_t *data = read_all(argv[i], &size);
		/* A copy of the exact size, so that a read past its end is seen. */
		uint8_t *exact = data == NULL ? NULL : malloc(size > 0 ? size : 1);
		if (exact == NULL) {
			perror(argv[i]);
			return 1;
		}
		for (size_t at = 0; at < size; at++)
			exact[at] = data[at];
		free(data);
		(void)fprintf(stderr, "%s\n", argv[i]); /* the last one named is the one that crashed */
		(void)LLVMFuzzerTestOneInput(exact, size);
		free(exact);
	}
	(void)fprintf(stderr, "replayed %d inputs\n", argc - 1);
	return 0;
}
