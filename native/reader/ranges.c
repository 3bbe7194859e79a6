/*
 * From ranges of files to operations on chunks: the planner's inner loops, where each range would
 * cost Python microseconds.
 *
 * Read path: client/filesystem.py -> client/planner.py -> THIS -> client/settle.py -> batch_calls.c
 *
 * Nothing is decided here. Whatever is not plain (a handle that nobody has, a range that does not
 * fit its file, a file of several segments, an odd type) makes the call return None, and Python
 * does the same the long way, which handles it or says what is wrong with it.
 *
 * Threads: runs under the interpreter's lock from end to end, so files do not change meanwhile.
 * Copies: no payload. Fork: no state.
 */
#include "reader/module.h"

#include "core/frame.h"
#include "core/status.h"
#include "reader/batch.h"

#define RANGE_BYTES 24u /* <QQQ: number of the file, offset, length */
#define FILE_BYTES 24u  /* <QQII: size, blob, log2 of chunk size, count of chains; then chains */
#define SHIFT_MAX 26u
#define MERGED_BYTES_MAX (1u << 20) /* more would leave too few to spread and pipeline */

enum verdict {
	VERDICT_PLAIN,
	VERDICT_NOT_PLAIN, /* for Python to look at */
	VERDICT_ERROR,     /* an exception is set */
};

/* ------------------------------------------------------------------------------- ranges to rows */

struct parser {
	PyObject *files; /* each different one, by number */
	PyObject *numbers;
	PyObject *last; /* the file of the range before, borrowed from its tuple */
	uint64_t last_number;
};

/* An error of the kinds that only say "not such an object" is dropped. */
static enum verdict unless_plain(void)
{
	if (!PyErr_ExceptionMatches(PyExc_TypeError) && !PyErr_ExceptionMatches(PyExc_OverflowError))
		return VERDICT_ERROR;
	PyErr_Clear();
	return VERDICT_NOT_PLAIN;
}

static enum verdict take_number(PyObject *object, uint64_t *number)
{
	if (PyLong_CheckExact(object)) {
		*number = PyLong_AsUnsignedLongLong(object);
	} else { /* NumPy's */
		PyObject *plain = PyNumber_Index(object);
		if (plain == NULL)
			return unless_plain();
		*number = PyLong_AsUnsignedLongLong(plain);
		Py_DECREF(plain);
	}
	return *number == UINT64_MAX && PyErr_Occurred() ? unless_plain() : VERDICT_PLAIN;
}

/* The number of a path or handle that may not have come before. */
static enum verdict number_of(struct parser *parser, PyObject *file, uint64_t *number)
{
	PyObject *known = PyDict_GetItemWithError(parser->numbers, file);
	if (known != NULL) {
		*number = PyLong_AsUnsignedLongLong(known);
		return VERDICT_PLAIN;
	}
	*number = (uint64_t)PyList_Size(parser->files);
	PyObject *fresh = PyErr_Occurred() ? NULL : PyLong_FromUnsignedLongLong(*number);
	bool failed = fresh == NULL || PyDict_SetItem(parser->numbers, file, fresh) != 0 ||
	              PyList_Append(parser->files, file) != 0;
	Py_XDECREF(fresh);
	return failed ? VERDICT_ERROR : VERDICT_PLAIN;
}

static enum verdict take_file(struct parser *parser, PyObject *file, uint64_t *number)
{
	enum verdict verdict = VERDICT_PLAIN;
	if (file == parser->last) {
		*number = parser->last_number;
		return verdict;
	}
	if (PyUnicode_CheckExact(file)) {
		verdict = number_of(parser, file, number);
	} else {
		PyObject *handle = PyNumber_Index(file);
		verdict = handle != NULL ? number_of(parser, handle, number) : unless_plain();
		Py_XDECREF(handle);
	}
	parser->last = verdict == VERDICT_PLAIN ? file : NULL;
	parser->last_number = *number;
	return verdict;
}

/* One range into `row`. Its tuple is held: an object's __index__ may do anything to the list. */
static enum verdict take_range(struct parser *parser, PyObject *range, uint8_t *row)
{
	uint64_t number = 0, offset = 0, length = 0;
	if (!PyTuple_CheckExact(range) || PyTuple_Size(range) != 3)
		return VERDICT_NOT_PLAIN;
	enum verdict verdict = take_file(parser, PyTuple_GetItem(range, 0), &number);
	if (verdict == VERDICT_PLAIN)
		verdict = take_number(PyTuple_GetItem(range, 1), &offset);
	if (verdict == VERDICT_PLAIN)
		verdict = take_number(PyTuple_GetItem(range, 2), &length);
	ffs_store_u64(row, number);
	ffs_store_u64(row + 8, offset);
	ffs_store_u64(row + 16, length);
	return verdict;
}

static enum verdict take_ranges(struct parser *parser, PyObject *ranges, uint8_t *rows)
{
	Py_ssize_t count = PyTuple_Size(ranges);
	enum verdict verdict = VERDICT_PLAIN;
	for (Py_ssize_t i = 0; i < count && verdict == VERDICT_PLAIN; i++, rows += RANGE_BYTES)
		verdict = take_range(parser, PyTuple_GetItem(ranges, i), rows);
	return verdict;
}

static PyObject *parse_ranges(PyObject *module, PyObject *given)
{
	(void)module;
	if (!PyList_CheckExact(given) && !PyTuple_CheckExact(given))
		Py_RETURN_NONE;
	if (PySequence_Size(given) < 2) /* not worth it */
		Py_RETURN_NONE;
	PyObject *result = NULL, *rows = NULL;
	PyObject *ranges = PySequence_Tuple(given); /* holds the ranges, whatever becomes of a list */
	struct parser parser = {.files = PyList_New(0), .numbers = PyDict_New()};
	if (ranges != NULL)
		rows = PyByteArray_FromStringAndSize(NULL, PyTuple_Size(ranges) * (Py_ssize_t)RANGE_BYTES);
	if (rows != NULL && parser.files != NULL && parser.numbers != NULL) {
		enum verdict verdict = take_ranges(&parser, ranges, (uint8_t *)PyByteArray_AsString(rows));
		if (verdict == VERDICT_PLAIN)
			result = PyTuple_Pack(2, parser.files, rows);
		else if (verdict == VERDICT_NOT_PLAIN)
			result = Py_NewRef(Py_None);
	}
	Py_XDECREF(rows);
	Py_XDECREF(parser.numbers);
	Py_XDECREF(parser.files);
	Py_XDECREF(ranges);
	return result;
}

/* --------------------------------------------------------------------------- rows to operations */

/* A plain file: one segment. Its chunks lie on the chains in turn. */
struct file {
	uint64_t size;
	uint64_t blob;
	uint32_t shift;
	uint32_t chain_count;
	const uint8_t *chains;
};

struct planner {
	PyObject *files;   /* list of bytes, or None for a file that is not plain */
	Py_buffer ranges;  /* rows */
	Py_buffer numbers; /* the handle that each place of `files` has now; or no buffer */
	Py_buffer chain_ids, chain_targets; /* u32 each, by ascending id */
	unsigned int sole_target;           /* not 0: of every chain */

	PyObject *ops, *chains; /* bytearrays; the second only without sole_target */
	size_t count, room;     /* operations made, operations that fit */
	uint64_t total;         /* bytes planned */

	uint64_t last_number; /* of `file` */
	struct file file;
	bool has_file;
	uint32_t last_chain, last_target;
};

static bool find_place(const struct planner *planner, uint64_t number, uint64_t *place)
{
	*place = number;
	if (planner->numbers.obj != NULL) {
		*place = number & UINT32_MAX;
		if (*place >= (uint64_t)planner->numbers.len / 8 ||
		    ffs_load_u64((const uint8_t *)planner->numbers.buf + 8 * *place) != number)
			return false;
	}
	return *place < (uint64_t)PyList_Size(planner->files);
}

static enum verdict find_file(struct planner *planner, uint64_t number)
{
	struct file *file = &planner->file;
	char *bytes;
	Py_ssize_t length;
	uint64_t place;
	if (planner->has_file && planner->last_number == number)
		return VERDICT_PLAIN;
	planner->has_file = false;
	if (!find_place(planner, number, &place))
		return VERDICT_NOT_PLAIN;
	PyObject *packed = PyList_GetItem(planner->files, (Py_ssize_t)place);
	if (packed == Py_None)
		return VERDICT_NOT_PLAIN;
	if (PyBytes_AsStringAndSize(packed, &bytes, &length) != 0)
		return VERDICT_ERROR;
	const uint8_t *at = (const uint8_t *)bytes;
	if (length < (Py_ssize_t)FILE_BYTES)
		return VERDICT_NOT_PLAIN;
	*file = (struct file){.size = ffs_load_u64(at),
	                      .blob = ffs_load_u64(at + 8),
	                      .shift = ffs_load_u32(at + 16),
	                      .chain_count = ffs_load_u32(at + 20),
	                      .chains = at + FILE_BYTES};
	if (file->shift > SHIFT_MAX || file->chain_count == 0 ||
	    (size_t)length != FILE_BYTES + (size_t)file->chain_count * 4)
		return VERDICT_NOT_PLAIN;
	planner->last_number = number;
	planner->has_file = true;
	return VERDICT_PLAIN;
}

/* The target that serves a chain; 0 if none does, or nobody knows the chain. */
static uint32_t find_target(struct planner *planner, uint32_t chain)
{
	const uint8_t *ids = planner->chain_ids.buf;
	size_t low = 0, high = (size_t)planner->chain_ids.len / 4;
	if (planner->last_target != 0 && planner->last_chain == chain)
		return planner->last_target;
	while (low < high) {
		size_t middle = (low + high) / 2;
		if (ffs_load_u32(ids + 4 * middle) < chain)
			low = middle + 1;
		else
			high = middle;
	}
	bool known = low < (size_t)planner->chain_ids.len / 4 && ffs_load_u32(ids + 4 * low) == chain;
	planner->last_chain = chain;
	planner->last_target =
		known ? ffs_load_u32((const uint8_t *)planner->chain_targets.buf + 4 * low) : 0;
	return planner->last_target;
}

static int grow(struct planner *planner, size_t room)
{
	size_t bytes;
	if (__builtin_mul_overflow(room, (size_t)FFS_OP_BYTES, &bytes) || bytes > PY_SSIZE_T_MAX) {
		PyErr_NoMemory();
		return -1;
	}
	planner->room = room;
	if (PyByteArray_Resize(planner->ops, (Py_ssize_t)bytes) != 0)
		return -1;
	return planner->chains == NULL ? 0
	                               : PyByteArray_Resize(planner->chains, (Py_ssize_t)(room * 4));
}

/* Let the last operation read on, if this is what comes next in the chunk. Its place in memory
 * comes next as well: ranges are packed. No byte more travels, and a shared block is checked once.
 */
static bool extend_last(struct planner *planner, uint64_t chunk, uint32_t within, uint32_t length)
{
	if (planner->count == 0)
		return false;
	uint8_t *last =
		(uint8_t *)PyByteArray_AsString(planner->ops) + (planner->count - 1) * FFS_OP_BYTES;
	uint32_t before = ffs_load_u32(last + 28);
	if (ffs_load_u64(last) != planner->file.blob || ffs_load_u32(last + 16) != chunk ||
	    ffs_load_u32(last + 24) + before != within || before + length > MERGED_BYTES_MAX)
		return false;
	ffs_store_u32(last + 28, before + length);
	planner->total += length;
	return true;
}

/* `length` bytes of chunk `chunk`, to the end of what is planned so far. */
static int add_operation(struct planner *planner, uint64_t chunk, uint32_t within, uint32_t length,
                         uint32_t tag)
{
	const struct file *file = &planner->file;
	uint32_t target = planner->sole_target;
	if (extend_last(planner, chunk, within, length))
		return 0;
	if (planner->count == planner->room && grow(planner, 2 * planner->room) != 0)
		return -1;
	if (planner->chains != NULL) {
		uint32_t chain = ffs_load_u32(file->chains + 4 * (chunk % file->chain_count));
		uint8_t *chains = (uint8_t *)PyByteArray_AsString(planner->chains);
		ffs_store_u32(chains + 4 * planner->count, chain);
		target = find_target(planner, chain);
	}
	uint8_t *op = (uint8_t *)PyByteArray_AsString(planner->ops) + planner->count * FFS_OP_BYTES;
	ffs_store_u64(op, file->blob);
	ffs_store_u64(op + 8, planner->total);
	ffs_store_u32(op + 16, (uint32_t)chunk);
	ffs_store_u32(op + 20, target);
	ffs_store_u32(op + 24, within);
	ffs_store_u32(op + 28, length);
	ffs_store_u16(op + 32, 0);
	ffs_store_u16(op + 34, target != 0 ? FFS_STATUS_PENDING : FFS_ERR_UNAVAILABLE);
	ffs_store_u32(op + 36, tag);
	planner->count++;
	planner->total += length;
	return 0;
}

/* One range: an operation for each chunk that it touches. */
static enum verdict plan_range(struct planner *planner, const uint8_t *row, uint32_t tag)
{
	uint64_t offset = ffs_load_u64(row + 8), length = ffs_load_u64(row + 16);
	enum verdict verdict = find_file(planner, ffs_load_u64(row));
	if (verdict != VERDICT_PLAIN)
		return verdict;
	const struct file *file = &planner->file;
	if (length == 0 || length > file->size || offset > file->size - length)
		return VERDICT_NOT_PLAIN;
	if ((offset + length - 1) >> file->shift > UINT32_MAX)
		return VERDICT_NOT_PLAIN;
	uint64_t chunk_bytes = UINT64_C(1) << file->shift;
	while (length > 0) {
		uint64_t within = offset & (chunk_bytes - 1);
		uint64_t step = chunk_bytes - within < length ? chunk_bytes - within : length;
		if (add_operation(planner, offset >> file->shift, (uint32_t)within, (uint32_t)step, tag) !=
		    0)
			return VERDICT_ERROR;
		offset += step;
		length -= step;
	}
	return VERDICT_PLAIN;
}

static enum verdict plan_all(struct planner *planner)
{
	size_t count = (size_t)planner->ranges.len / RANGE_BYTES;
	const uint8_t *row = planner->ranges.buf;
	enum verdict verdict = VERDICT_PLAIN;
	if (count > UINT32_MAX)
		return VERDICT_NOT_PLAIN;
	planner->ops = PyByteArray_FromStringAndSize(NULL, 0);
	planner->chains = planner->sole_target == 0 ? PyByteArray_FromStringAndSize(NULL, 0) : NULL;
	if (planner->ops == NULL || (planner->chains == NULL && planner->sole_target == 0) ||
	    grow(planner, count > 0 ? count : 1) != 0)
		return VERDICT_ERROR;
	for (uint32_t tag = 0; tag < count && verdict == VERDICT_PLAIN; tag++, row += RANGE_BYTES)
		verdict = plan_range(planner, row, tag);
	if (verdict == VERDICT_PLAIN && grow(planner, planner->count) != 0)
		return VERDICT_ERROR;
	return verdict;
}

static int open_buffers(struct planner *planner, PyObject *ranges, PyObject *numbers,
                        PyObject *chain_ids, PyObject *chain_targets)
{
	if (PyObject_GetBuffer(ranges, &planner->ranges, PyBUF_SIMPLE) != 0 ||
	    (numbers != Py_None && PyObject_GetBuffer(numbers, &planner->numbers, PyBUF_SIMPLE) != 0) ||
	    PyObject_GetBuffer(chain_ids, &planner->chain_ids, PyBUF_SIMPLE) != 0 ||
	    PyObject_GetBuffer(chain_targets, &planner->chain_targets, PyBUF_SIMPLE) != 0)
		return -1;
	if (planner->chain_ids.len == planner->chain_targets.len &&
	    planner->ranges.len % (Py_ssize_t)RANGE_BYTES == 0)
		return 0;
	PyErr_SetString(PyExc_ValueError, "ranges, or chains and targets, have odd lengths");
	return -1;
}

static void close_buffer(Py_buffer *buffer)
{
	if (buffer->obj != NULL)
		PyBuffer_Release(buffer);
}

static PyObject *plan_result(const struct planner *planner)
{
	PyObject *chains = planner->chains != NULL ? planner->chains : Py_None;
	PyObject *total = PyLong_FromUnsignedLongLong(planner->total);
	PyObject *result = total != NULL ? PyTuple_Pack(3, planner->ops, chains, total) : NULL;
	Py_XDECREF(total);
	return result;
}

static PyObject *plan_ranges(PyObject *module, PyObject *args)
{
	(void)module;
	struct planner planner = {0};
	PyObject *ranges, *numbers, *chain_ids, *chain_targets, *result = NULL;
	if (!PyArg_ParseTuple(args, "OO!OOOI:plan_ranges", &ranges, &PyList_Type, &planner.files,
	                      &numbers, &chain_ids, &chain_targets, &planner.sole_target))
		return NULL;
	if (open_buffers(&planner, ranges, numbers, chain_ids, chain_targets) == 0) {
		enum verdict verdict = plan_all(&planner);
		if (verdict == VERDICT_PLAIN)
			result = plan_result(&planner);
		else if (verdict == VERDICT_NOT_PLAIN)
			result = Py_NewRef(Py_None);
	}
	Py_XDECREF(planner.chains);
	Py_XDECREF(planner.ops);
	close_buffer(&planner.chain_targets);
	close_buffer(&planner.chain_ids);
	close_buffer(&planner.numbers);
	close_buffer(&planner.ranges);
	return result;
}

PyMethodDef ffs_range_methods[] = {
	{"parse_ranges", parse_ranges, METH_O,
     "(path or handle, offset, length) tuples as rows. See ffs/_reader.pyi."},
	{"plan_ranges", plan_ranges, METH_VARARGS, "Rows as operations. See ffs/_reader.pyi."},
	{NULL, NULL, 0, NULL},
};
