/* ChunkStore, the Python object: arguments in, statuses out. See ffs/_storage.pyi. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/frame.h"
#include "core/sys.h"
#include "storage/disk.h"
#include "storage/module.h"
#include "storage/superblock.h"

#define BLOBS_LIMIT_MAX (1 << 24)
#define KEYS_LIMIT_MAX (1 << 20)
#define DROP_DELAY_MS_DEFAULT 2000

struct py_store {
	PyObject_HEAD struct ffs_store *store;
};

struct ffs_store *ffs_py_store(PyObject *object)
{
	struct py_store *self = (struct py_store *)object;
	if (self->store == NULL) {
		PyErr_SetString(PyExc_ValueError, "chunk store is closed");
		return NULL;
	}
	if (self->store->owner != getpid()) {
		PyErr_SetString(PyExc_RuntimeError, "chunk store was opened before a fork, by the parent");
		return NULL;
	}
	return self->store;
}

static void raise_fault(const struct ffs_store_error *error)
{
	if (error->fault == FFS_STORE_REFUSED) {
		PyErr_SetString(PyExc_ValueError, error->text);
		return;
	}
	PyObject *type = error->fault == FFS_STORE_BUSY ? PyExc_BlockingIOError : PyExc_OSError;
	PyObject *arguments = Py_BuildValue("(is)", error->error, error->text);
	if (arguments != NULL)
		PyErr_SetObject(type, arguments);
	Py_XDECREF(arguments);
}

static int store_init(PyObject *object, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"path", "cluster_id", "target_id", "create", "drop_delay_ms", NULL};
	struct py_store *self = (struct py_store *)object;
	struct ffs_store_options options = {.drop_delay_ms = DROP_DELAY_MS_DEFAULT};
	struct ffs_store_error error;
	PyObject *path = NULL;
	const char *cluster_id = NULL;
	Py_ssize_t cluster_length = 0;
	int create = 0;
	if (self->store != NULL) {
		PyErr_SetString(PyExc_ValueError, "chunk store is open already");
		return -1;
	}
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&|$y#IpI", names, PyUnicode_FSConverter, &path,
	                                 &cluster_id, &cluster_length, &options.target_id, &create,
	                                 &options.drop_delay_ms))
		return -1;
	if (cluster_length != FFS_CLUSTER_ID_BYTES || options.target_id == 0) {
		PyErr_Format(
			PyExc_ValueError,
			"a chunk store needs a cluster_id of %d bytes (not %zd) and a target_id above 0",
			(int)FFS_CLUSTER_ID_BYTES, cluster_length);
		Py_DECREF(path);
		return -1;
	}
	options.path = PyBytes_AsString(path);
	memcpy(options.cluster_id, cluster_id, FFS_CLUSTER_ID_BYTES);
	options.create = create != 0;
	Py_BEGIN_ALLOW_THREADS self->store = ffs_store_open(&options, &error);
	Py_END_ALLOW_THREADS Py_DECREF(path);
	if (self->store == NULL) {
		raise_fault(&error);
		return -1;
	}
	return 0;
}

/* Calls under way in other threads hold references of their own. */
static void end_store(struct py_store *self)
{
	struct ffs_store *store = self->store;
	self->store = NULL;
	if (store == NULL)
		return;
	Py_BEGIN_ALLOW_THREADS ffs_store_close(store);
	ffs_store_unref(store);
	Py_END_ALLOW_THREADS
}

static void store_dealloc(PyObject *object)
{
	PyTypeObject *type = Py_TYPE(object);
	end_store((struct py_store *)object);
	freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
	release(object);
	Py_DECREF(type);
}

static PyObject *store_close(PyObject *object, PyObject *unused)
{
	(void)unused;
	end_store((struct py_store *)object);
	Py_RETURN_NONE;
}

static PyObject *store_superblock(PyObject *unused, PyObject *args)
{
	PyObject *path = NULL;
	struct ffs_superblock block;
	struct ffs_store_error error;
	int result;
	(void)unused;
	if (!PyArg_ParseTuple(args, "O&", PyUnicode_FSConverter, &path))
		return NULL;
	const char *text = PyBytes_AsString(path);
	Py_BEGIN_ALLOW_THREADS result = ffs_store_superblock(text, &block, &error);
	Py_END_ALLOW_THREADS Py_DECREF(path);
	if (result == -ENOENT)
		Py_RETURN_NONE;
	if (result != 0) {
		raise_fault(&error);
		return NULL;
	}
	return Py_BuildValue("{s:y#,s:I,s:I,s:O}", "cluster_id", (const char *)block.cluster_id,
	                     (Py_ssize_t)FFS_CLUSTER_ID_BYTES, "target_id", block.target_id, "format",
	                     block.format, "clean", block.clean ? Py_True : Py_False);
}

/* ----------------------------------------------------------------------------------------- read */

static uint16_t read_range(const struct ffs_range *range, char *data, char *crcs)
{
	int result = ffs_disk_read(range->data_fd, data, range->bytes, range->data_offset);
	if (result == 0)
		result = ffs_disk_read(range->crc_fd, crcs, range->crc_blocks * sizeof(uint32_t),
		                       range->crc_offset);
	return result == 0 ? FFS_OK : FFS_ERR_STORAGE_IO;
}

static PyObject *store_read(PyObject *object, PyObject *args)
{
	unsigned long long blob;
	unsigned int chunk;
	unsigned int offset;
	unsigned int length;
	struct ffs_range range = {0};
	if (!PyArg_ParseTuple(args, "KIII", &blob, &chunk, &offset, &length))
		return NULL;
	struct ffs_store *store = ffs_py_store(object);
	if (store == NULL)
		return NULL;
	uint16_t status = ffs_store_find(store, blob, chunk, offset, length, true, &range);
	if (status != FFS_OK)
		return Py_BuildValue("(iy#y#)", (int)status, "", (Py_ssize_t)0, "", (Py_ssize_t)0);
	PyObject *result = NULL;
	ffs_store_ref(store);
	PyObject *data = PyBytes_FromStringAndSize(NULL, range.bytes);
	PyObject *crcs =
		PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(range.crc_blocks * sizeof(uint32_t)));
	if (data != NULL && crcs != NULL) {
		char *data_at = PyBytes_AsString(data);
		char *crcs_at = PyBytes_AsString(crcs);
		Py_BEGIN_ALLOW_THREADS status = read_range(&range, data_at, crcs_at);
		Py_END_ALLOW_THREADS if (status == FFS_OK) result = Py_BuildValue("(iOO)", 0, data, crcs);
		else result = Py_BuildValue("(iy#y#)", (int)status, "", (Py_ssize_t)0, "", (Py_ssize_t)0);
	}
	ffs_store_release(&range);
	ffs_store_unref(store);
	Py_XDECREF(data);
	Py_XDECREF(crcs);
	return result;
}

static PyObject *store_lookup(PyObject *object, PyObject *args)
{
	unsigned long long blob;
	unsigned int chunk_index;
	if (!PyArg_ParseTuple(args, "KI", &blob, &chunk_index))
		return NULL;
	struct ffs_store *store = ffs_py_store(object);
	if (store == NULL)
		return NULL;
	struct ffs_chunk *chunk = ffs_table_pin(&store->table, blob, chunk_index);
	if (chunk == NULL)
		Py_RETURN_NONE;
	PyObject *result = Py_BuildValue("(II)", chunk->length, chunk->digest);
	ffs_chunk_unpin(chunk);
	return result;
}

/* ------------------------------------------------------------------------------- drops, listings
 */

static PyObject *store_drop(PyObject *object, PyObject *list)
{
	Py_ssize_t count = PySequence_Size(list);
	if (count < 0)
		return NULL;
	uint64_t *blobs = ffs_sys_calloc((size_t)count + 1, sizeof(uint64_t));
	if (blobs == NULL)
		return PyErr_NoMemory();
	for (Py_ssize_t i = 0; i < count; i++) {
		PyObject *item = PySequence_GetItem(list, i);
		blobs[i] = item == NULL ? 0 : PyLong_AsUnsignedLongLong(item);
		Py_XDECREF(item);
		if (PyErr_Occurred()) {
			free(blobs);
			return NULL;
		}
	}
	struct ffs_store *store = ffs_py_store(object);
	if (store == NULL) {
		free(blobs);
		return NULL;
	}
	uint64_t dropped;
	uint16_t status;
	ffs_store_ref(store);
	Py_BEGIN_ALLOW_THREADS status = ffs_store_drop(store, blobs, (size_t)count, &dropped);
	Py_END_ALLOW_THREADS ffs_store_unref(store);
	free(blobs);
	if (status != FFS_OK) {
		errno = status == FFS_ERR_BUSY ? ENOMEM : EIO;
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	return PyLong_FromUnsignedLongLong(dropped);
}

static PyObject *store_blobs(PyObject *object, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"after", "limit", NULL};
	unsigned long long after = 0;
	Py_ssize_t limit = 4096;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|Kn", names, &after, &limit))
		return NULL;
	if (limit < 1 || limit > BLOBS_LIMIT_MAX)
		return PyErr_Format(PyExc_ValueError, "limit is %zd, expected 1 to %d", limit,
		                    BLOBS_LIMIT_MAX);
	struct ffs_store *store = ffs_py_store(object);
	if (store == NULL)
		return NULL;
	uint64_t *blobs;
	ssize_t count;
	ffs_store_ref(store);
	Py_BEGIN_ALLOW_THREADS count = ffs_store_blobs(store, after, (size_t)limit, &blobs);
	Py_END_ALLOW_THREADS ffs_store_unref(store);
	if (count < 0)
		return PyErr_NoMemory();
	PyObject *list = PyList_New(count);
	for (ssize_t i = 0; list != NULL && i < count; i++) {
		PyObject *blob = PyLong_FromUnsignedLongLong(blobs[i]);
		if (blob == NULL || PyList_SetItem(list, i, blob) != 0)
			Py_CLEAR(list);
	}
	free(blobs);
	return list;
}

static PyObject *store_chunks(PyObject *object, PyObject *args)
{
	unsigned long long blob;
	struct ffs_chunk_name *chunks;
	if (!PyArg_ParseTuple(args, "K", &blob))
		return NULL;
	struct ffs_store *store = ffs_py_store(object);
	if (store == NULL)
		return NULL;
	ssize_t count;
	ffs_store_ref(store);
	Py_BEGIN_ALLOW_THREADS count = ffs_store_chunks(store, blob, &chunks);
	Py_END_ALLOW_THREADS ffs_store_unref(store);
	if (count < 0)
		return PyErr_NoMemory();
	PyObject *list = PyList_New(count);
	for (ssize_t i = 0; list != NULL && i < count; i++) {
		PyObject *name = Py_BuildValue("(II)", chunks[i].chunk, chunks[i].length);
		if (name == NULL || PyList_SetItem(list, i, name) != 0)
			Py_CLEAR(list);
	}
	free(chunks);
	return list;
}

static PyObject *store_keys(PyObject *object, PyObject *args)
{
	unsigned long long after_blob;
	unsigned int after_chunk;
	Py_ssize_t limit;
	if (!PyArg_ParseTuple(args, "KIn", &after_blob, &after_chunk, &limit))
		return NULL;
	if (limit < 1 || limit > KEYS_LIMIT_MAX)
		return PyErr_Format(PyExc_ValueError, "limit is %zd, expected 1 to %d", limit,
		                    KEYS_LIMIT_MAX);
	struct ffs_store *store = ffs_py_store(object);
	if (store == NULL)
		return NULL;
	struct ffs_key *keys;
	ssize_t count;
	ffs_store_ref(store);
	Py_BEGIN_ALLOW_THREADS count =
		ffs_store_keys(store, after_blob, after_chunk, (size_t)limit, &keys);
	Py_END_ALLOW_THREADS ffs_store_unref(store);
	if (count < 0)
		return PyErr_NoMemory();
	PyObject *page = PyBytes_FromStringAndSize(NULL, count * (Py_ssize_t)FFS_KEY_BYTES);
	for (ssize_t i = 0; page != NULL && i < count; i++)
		ffs_key_pack((uint8_t *)PyBytes_AsString(page) + i * (ssize_t)FFS_KEY_BYTES, &keys[i]);
	free(keys);
	return page;
}

static PyObject *store_stats(PyObject *object, PyObject *unused)
{
	struct ffs_store *store = ffs_py_store(object);
	(void)unused;
	if (store == NULL)
		return NULL;
	const struct ffs_store_counts *counts = &store->counts;
	return Py_BuildValue(
		"{s:K,s:K,s:K,s:K,s:I,s:i}", "chunks", (unsigned long long)atomic_load(&counts->chunks),
		"stored_bytes", (unsigned long long)atomic_load(&counts->stored_bytes), "allocated_bytes",
		(unsigned long long)atomic_load(&counts->allocated_bytes), "damaged_entries",
		(unsigned long long)atomic_load(&counts->damaged_entries), "damage", store->damage,
		"stopped", (int)atomic_load(&store->stopped));
}

static PyObject *store_latency(PyObject *object, PyObject *unused)
{
	struct ffs_store *store = ffs_py_store(object);
	(void)unused;
	return store == NULL ? NULL : ffs_py_store_latency(store);
}

static PyObject *store_waiting_ms(PyObject *object, PyObject *unused)
{
	struct ffs_store *store = ffs_py_store(object);
	(void)unused;
	if (store == NULL)
		return NULL;
	return PyLong_FromUnsignedLongLong(ffs_store_waiting_ns(store) / UINT64_C(1000000));
}

static PyObject *store_give_up(PyObject *object, PyObject *unused)
{
	struct ffs_store *store = ffs_py_store(object);
	(void)unused;
	if (store == NULL)
		return NULL;
	ffs_store_ref(store);
	Py_BEGIN_ALLOW_THREADS ffs_store_give_up(store);
	Py_END_ALLOW_THREADS ffs_store_unref(store);
	Py_RETURN_NONE;
}

/* As close, but whoever still has the object finds a stopped target in it. */
static PyObject *store_release(PyObject *object, PyObject *unused)
{
	struct ffs_store *store = ffs_py_store(object);
	(void)unused;
	if (store == NULL)
		return NULL;
	ffs_store_ref(store);
	Py_BEGIN_ALLOW_THREADS ffs_store_close(store);
	Py_END_ALLOW_THREADS ffs_store_unref(store);
	Py_RETURN_NONE;
}

static PyMethodDef store_methods[] = {
	{"read_superblock", store_superblock, METH_VARARGS | METH_STATIC, NULL},
	{"put", ffs_py_put, METH_VARARGS, NULL},
	{"put_many", ffs_py_put_many, METH_VARARGS, NULL},
	{"replace", ffs_py_replace, METH_VARARGS, NULL},
	{"verify", ffs_py_verify, METH_VARARGS, NULL},
	{"keys", store_keys, METH_VARARGS, NULL},
	{"read", store_read, METH_VARARGS, NULL},
	{"lookup", store_lookup, METH_VARARGS, NULL},
	{"drop", store_drop, METH_O, NULL},
	{"blobs", (PyCFunction)(void (*)(void))store_blobs, METH_VARARGS | METH_KEYWORDS, NULL},
	{"chunks", store_chunks, METH_VARARGS, NULL},
	{"stats", store_stats, METH_NOARGS, NULL},
	{"latency", store_latency, METH_NOARGS, NULL},
	{"waiting_ms", store_waiting_ms, METH_NOARGS, NULL},
	{"give_up", store_give_up, METH_NOARGS, NULL},
	{"release", store_release, METH_NOARGS, NULL},
	{"close", store_close, METH_NOARGS, NULL},
	{NULL, NULL, 0, NULL},
};

static PyType_Slot store_slots[] = {
	{Py_tp_doc, "One target: a directory of extent, checksum and index files."},
	{Py_tp_init, store_init},
	{Py_tp_dealloc, store_dealloc},
	{Py_tp_methods, store_methods},
	{0, NULL},
};

PyType_Spec ffs_store_spec = {
	.name = "ffs._storage.ChunkStore",
	.basicsize = sizeof(struct py_store),
	.flags = Py_TPFLAGS_DEFAULT,
	.slots = store_slots,
};
