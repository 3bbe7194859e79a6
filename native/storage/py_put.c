/* ChunkStore's methods that store, replace and verify chunks. See ffs/_storage.pyi. */
#include <stdlib.h>

#include "core/frame.h"
#include "core/sys.h"
#include "storage/module.h"

#define PUT_MANY_MAX FFS_BATCH_PUTS_MAX

struct waiter {
	pthread_mutex_t lock;
	pthread_cond_t wake;
	size_t pending;
};

static void put_done(struct ffs_put *put)
{
	struct waiter *waiter = put->context;
	pthread_mutex_lock(&waiter->lock);
	if (--waiter->pending == 0)
		pthread_cond_signal(&waiter->wake);
	pthread_mutex_unlock(&waiter->lock);
}

/* `put_done` is called for each; wait for all. */
static void wait_for(struct waiter *waiter)
{
	pthread_mutex_lock(&waiter->lock);
	while (waiter->pending > 0)
		pthread_cond_wait(&waiter->wake, &waiter->lock);
	pthread_mutex_unlock(&waiter->lock);
}

static void put_and_wait(struct ffs_store *store, struct ffs_put *puts, size_t count, bool replaces)
{
	struct waiter waiter = {
		.lock = PTHREAD_MUTEX_INITIALIZER,
		.wake = PTHREAD_COND_INITIALIZER,
		.pending = count,
	};
	for (size_t i = 0; i < count; i++) {
		puts[i].done = put_done;
		puts[i].context = &waiter;
	}
	if (replaces)
		ffs_store_replace(store, puts);
	else
		ffs_store_put_all(store, puts, count);
	wait_for(&waiter);
}

static PyObject *put_checked(struct ffs_store *store, struct ffs_put *put, const Py_buffer *data,
                             const Py_buffer *crcs, bool replaces)
{
	if (data->len < 1 || data->len > (Py_ssize_t)FFS_CHUNK_BYTES_MAX)
		return PyErr_Format(PyExc_ValueError, "chunk has %zd bytes, expected 1 to %u", data->len,
		                    FFS_CHUNK_BYTES_MAX);
	put->length = (uint32_t)data->len;
	Py_ssize_t expected = (Py_ssize_t)(ffs_block_count(put->length) * sizeof(uint32_t));
	if (crcs->len != expected)
		return PyErr_Format(PyExc_ValueError, "block CRCs have %zd bytes, expected %zd", crcs->len,
		                    expected);
	put->data = data->buf;
	put->crcs = crcs->buf;
	ffs_store_ref(store);
	Py_BEGIN_ALLOW_THREADS put_and_wait(store, put, 1, replaces);
	Py_END_ALLOW_THREADS ffs_store_unref(store);
	return PyLong_FromLong(put->status);
}

static PyObject *put_one(PyObject *object, PyObject *args, bool replaces)
{
	struct ffs_put put = {0};
	unsigned long long blob;
	PyObject *data_object;
	PyObject *crcs_object;
	Py_buffer data;
	Py_buffer crcs;
	if (!PyArg_ParseTuple(args, "KIOO", &blob, &put.chunk, &data_object, &crcs_object))
		return NULL;
	put.blob = blob;
	if (PyObject_GetBuffer(data_object, &data, PyBUF_SIMPLE) != 0)
		return NULL;
	if (PyObject_GetBuffer(crcs_object, &crcs, PyBUF_SIMPLE) != 0) {
		PyBuffer_Release(&data);
		return NULL;
	}
	struct ffs_store *store = ffs_py_store(object);
	PyObject *result = store == NULL ? NULL : put_checked(store, &put, &data, &crcs, replaces);
	PyBuffer_Release(&crcs);
	PyBuffer_Release(&data);
	return result;
}

PyObject *ffs_py_put(PyObject *object, PyObject *args)
{
	return put_one(object, args, false);
}

PyObject *ffs_py_replace(PyObject *object, PyObject *args)
{
	return put_one(object, args, true);
}

/* Fill one put from (blob, chunk, offset, length); `crc_at` goes on by its CRCs. */
static bool take_row(PyObject *row, struct ffs_put *put, const Py_buffer *data,
                     const Py_buffer *crcs, Py_ssize_t *crc_at)
{
	unsigned long long blob;
	unsigned int chunk;
	Py_ssize_t offset;
	Py_ssize_t length;
	if (!PyTuple_Check(row)) {
		PyErr_SetString(PyExc_TypeError, "a chunk is a tuple (blob, chunk, offset, length)");
		return false;
	}
	if (!PyArg_ParseTuple(row, "KInn", &blob, &chunk, &offset, &length))
		return false;
	if (length < 1 || length > (Py_ssize_t)FFS_CHUNK_BYTES_MAX || offset < 0 ||
	    offset > data->len || length > data->len - offset) {
		PyErr_Format(PyExc_ValueError, "chunk of %zd bytes at %zd is not inside of %zd bytes",
		             length, offset, data->len);
		return false;
	}
	Py_ssize_t crc_bytes = (Py_ssize_t)(ffs_block_count((uint32_t)length) * sizeof(uint32_t));
	if (crc_bytes > crcs->len - *crc_at) {
		PyErr_Format(PyExc_ValueError, "%zd bytes of block CRCs are too few", crcs->len);
		return false;
	}
	put->blob = blob;
	put->chunk = chunk;
	put->length = (uint32_t)length;
	put->data = (const uint8_t *)data->buf + offset;
	put->crcs = (const uint8_t *)crcs->buf + *crc_at;
	*crc_at += crc_bytes;
	return true;
}

static PyObject *statuses_of(const struct ffs_put *puts, Py_ssize_t count)
{
	PyObject *list = PyList_New(count);
	for (Py_ssize_t i = 0; list != NULL && i < count; i++) {
		PyObject *status = PyLong_FromLong(puts[i].status);
		if (status == NULL || PyList_SetItem(list, i, status) != 0)
			Py_CLEAR(list);
	}
	return list;
}

static PyObject *put_rows(PyObject *object, PyObject *rows, const Py_buffer *data,
                          const Py_buffer *crcs)
{
	Py_ssize_t count = PyList_Size(rows);
	Py_ssize_t crc_at = 0;
	if (count > PUT_MANY_MAX)
		return PyErr_Format(PyExc_ValueError, "%zd chunks, expected %d at most", count,
		                    PUT_MANY_MAX);
	struct ffs_put *puts = ffs_sys_calloc((size_t)count + 1, sizeof(*puts));
	if (puts == NULL)
		return PyErr_NoMemory();
	PyObject *result = NULL;
	bool good = true;
	for (Py_ssize_t i = 0; good && i < count; i++)
		good = take_row(PyList_GetItem(rows, i), &puts[i], data, crcs, &crc_at);
	if (good && crc_at != crcs->len) {
		PyErr_Format(PyExc_ValueError, "block CRCs have %zd bytes, expected %zd", crcs->len,
		             crc_at);
		good = false;
	}
	struct ffs_store *store = good ? ffs_py_store(object) : NULL;
	if (store != NULL) {
		ffs_store_ref(store);
		Py_BEGIN_ALLOW_THREADS if (count > 0) put_and_wait(store, puts, (size_t)count, false);
		Py_END_ALLOW_THREADS ffs_store_unref(store);
		result = statuses_of(puts, count);
	}
	free(puts);
	return result;
}

PyObject *ffs_py_put_many(PyObject *object, PyObject *args)
{
	PyObject *chunks;
	PyObject *data_object;
	PyObject *crcs_object;
	Py_buffer data;
	Py_buffer crcs;
	if (!PyArg_ParseTuple(args, "OOO", &chunks, &data_object, &crcs_object))
		return NULL;
	PyObject *rows = PySequence_List(chunks); /* ours: nobody changes it while it is read */
	if (rows == NULL)
		return NULL;
	PyObject *result = NULL;
	if (PyObject_GetBuffer(data_object, &data, PyBUF_SIMPLE) == 0) {
		if (PyObject_GetBuffer(crcs_object, &crcs, PyBUF_SIMPLE) == 0) {
			result = put_rows(object, rows, &data, &crcs);
			PyBuffer_Release(&crcs);
		}
		PyBuffer_Release(&data);
	}
	Py_DECREF(rows);
	return result;
}

PyObject *ffs_py_verify(PyObject *object, PyObject *args)
{
	unsigned long long blob;
	unsigned int chunk;
	uint16_t status;
	if (!PyArg_ParseTuple(args, "KI", &blob, &chunk))
		return NULL;
	struct ffs_store *store = ffs_py_store(object);
	if (store == NULL)
		return NULL;
	ffs_store_ref(store);
	Py_BEGIN_ALLOW_THREADS status = ffs_store_verify(store, blob, chunk);
	Py_END_ALLOW_THREADS ffs_store_unref(store);
	return PyLong_FromLong(status);
}
