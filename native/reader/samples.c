/*
 * Checksums of samples: one at a time for whoever writes records, a batch at a time for whoever
 * reads them with verify="sample". client/records/ is the only caller.
 *
 * Threads: the interpreter's lock is given up for what takes longer than taking it again.
 * Copies: none. Fork: no state but the choice of an implementation.
 */
#include "reader/module.h"

#include <string.h>

#include "core/crc32.h"
#include "core/crc32c.h"
#include "core/frame.h"

#define UNLOCKED_BYTES (64 << 10) /* from here on a checksum gives up the interpreter's lock */

static PyObject *crc32(PyObject *module, PyObject *args, PyObject *kwargs)
{
	(void)module;
	static char *names[] = {"data", "init", NULL};
	Py_buffer data;
	unsigned int init = 0;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*|I:crc32", names, &data, &init))
		return NULL;
	PyThreadState *thread = data.len >= UNLOCKED_BYTES ? PyEval_SaveThread() : NULL;
	uint32_t crc = ffs_crc32(init, data.buf, (size_t)data.len);
	if (thread != NULL)
		PyEval_RestoreThread(thread);
	PyBuffer_Release(&data);
	return PyLong_FromUnsignedLong(crc);
}

/* Samples in memory and what each one's checksum must be. */
struct batch {
	Py_buffer data, offsets, lengths, crcs; /* offsets and lengths u64, crcs u32 */
	uint32_t (*crc)(uint32_t init, const void *data, size_t length);
};

/* The first sample whose checksum is another, or how many there are. */
static size_t first_bad(const struct batch *batch, size_t count)
{
	const uint8_t *data = batch->data.buf, *offsets = batch->offsets.buf;
	const uint8_t *lengths = batch->lengths.buf, *crcs = batch->crcs.buf;
	for (size_t i = 0; i < count; i++) {
		uint64_t offset = ffs_load_u64(offsets + 8 * i), length = ffs_load_u64(lengths + 8 * i);
		if (batch->crc(0, data + offset, (size_t)length) != ffs_load_u32(crcs + 4 * i))
			return i;
	}
	return count;
}

/* Whether the arrays have one length and every sample lies inside `data`. */
static bool fits(const struct batch *batch, size_t count)
{
	const uint8_t *offsets = batch->offsets.buf, *lengths = batch->lengths.buf;
	uint64_t size = (uint64_t)batch->data.len;
	if ((size_t)batch->offsets.len != 8 * count || (size_t)batch->lengths.len != 8 * count ||
	    (size_t)batch->crcs.len != 4 * count)
		return false;
	for (size_t i = 0; i < count; i++) {
		uint64_t offset = ffs_load_u64(offsets + 8 * i), length = ffs_load_u64(lengths + 8 * i);
		if (length > size || offset > size - length)
			return false;
	}
	return true;
}

static PyObject *check_batch(const struct batch *batch)
{
	size_t count = (size_t)batch->crcs.len / 4;
	if (!fits(batch, count)) {
		PyErr_SetString(PyExc_ValueError, "a sample lies outside of data, or arrays differ");
		return NULL;
	}
	PyThreadState *thread = PyEval_SaveThread();
	size_t bad = first_bad(batch, count);
	PyEval_RestoreThread(thread);
	return PyLong_FromSize_t(bad);
}

static PyObject *check_samples(PyObject *module, PyObject *args)
{
	(void)module;
	struct batch batch;
	const char *name;
	PyObject *result = NULL;
	if (!PyArg_ParseTuple(args, "y*y*y*y*s:check_samples", &batch.data, &batch.offsets,
	                      &batch.lengths, &batch.crcs, &name))
		return NULL;
	batch.crc = strcmp(name, "crc32") == 0    ? ffs_crc32
	            : strcmp(name, "crc32c") == 0 ? ffs_crc32c
	                                          : NULL;
	if (batch.crc != NULL)
		result = check_batch(&batch);
	else
		PyErr_Format(PyExc_ValueError, "there is no checksum %s", name);
	PyBuffer_Release(&batch.data);
	PyBuffer_Release(&batch.offsets);
	PyBuffer_Release(&batch.lengths);
	PyBuffer_Release(&batch.crcs);
	return result;
}

static PyObject *crc32_implementation(PyObject *module, PyObject *unused)
{
	(void)module, (void)unused;
	return PyUnicode_FromString(ffs_crc32_name());
}

static PyObject *force_crc32(PyObject *module, PyObject *args)
{
	(void)module;
	const char *name;
	if (!PyArg_ParseTuple(args, "s:force_crc32", &name))
		return NULL;
	if (!ffs_crc32_force(name))
		return PyErr_Format(PyExc_ValueError, "this CPU has no CRC implementation %s", name);
	Py_RETURN_NONE;
}

PyMethodDef ffs_sample_methods[] = {
	{"crc32", (PyCFunction)(void (*)(void))(crc32), METH_VARARGS | METH_KEYWORDS,
     "CRC-32 of `data` as zlib has it, continuing `init`."},
	{"check_samples", check_samples, METH_VARARGS, "Hold samples against their checksums."},
	{"crc32_implementation", crc32_implementation, METH_NOARGS, "Name of the CRC-32 code in use."},
	{"force_crc32", force_crc32, METH_VARARGS, "Use the CRC-32 code of this name, or \"auto\"."},
	{NULL, NULL, 0, NULL},
};
