/* DataLoop, the Python object: adoption, events, decisions about writes. See ffs/_storage.pyi. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/sys.h"
#include "storage/loop.h"
#include "storage/module.h"

#define WRITE_BUFFER_BYTES_DEFAULT (256u << 20)
#define SLOW_READ_MS_DEFAULT 1000u
#define READ_BUFFER_BYTES_DEFAULT (64u << 20)

struct py_loop {
	PyObject_HEAD struct ffs_group *group;
};

static bool is_ours(const struct ffs_group *group)
{
	if (group->owner == getpid())
		return true;
	PyErr_SetString(PyExc_RuntimeError, "data loop was made before a fork, by the parent");
	return false;
}

static struct ffs_group *open_group(PyObject *object)
{
	struct ffs_group *group = ((struct py_loop *)object)->group;
	if (group == NULL || group->closed) {
		PyErr_SetString(PyExc_ValueError, "data loop is closed");
		return NULL;
	}
	return is_ours(group) ? group : NULL;
}

static PyObject *raise_errno(int error)
{
	errno = error;
	return PyErr_SetFromErrno(PyExc_OSError);
}

static int add_store(struct ffs_group *group, PyObject *target_id, PyObject *store_object,
                     PyTypeObject *store_type)
{
	if (!PyObject_TypeCheck(store_object, store_type)) {
		PyErr_SetString(PyExc_TypeError, "a data loop serves ChunkStore objects");
		return -1;
	}
	struct ffs_store *store = ffs_py_store(store_object);
	if (store == NULL)
		return -1;
	unsigned long id = PyLong_AsUnsignedLong(target_id);
	if (PyErr_Occurred())
		return -1;
	if (id != store->superblock.target_id) {
		PyErr_Format(PyExc_ValueError, "chunk store holds target %u, not target %lu",
		             store->superblock.target_id, id);
		return -1;
	}
	int result = ffs_group_add_store(group, store);
	if (result == -EBUSY) {
		PyErr_Format(PyExc_ValueError, "another data loop serves target %lu", id);
		return -1;
	}
	if (result != 0)
		raise_errno(-result);
	return result;
}

static int add_stores(struct py_loop *self, PyObject *stores)
{
	PyObject *module = PyType_GetModule(Py_TYPE((PyObject *)self));
	PyObject *target_id;
	PyObject *store;
	Py_ssize_t at = 0;
	if (module == NULL)
		return -1;
	PyTypeObject *store_type = ffs_storage_state(module)->store_type;
	while (PyDict_Next(stores, &at, &target_id, &store)) {
		if (add_store(self->group, target_id, store, store_type) != 0)
			return -1;
	}
	return 0;
}

static void end_group(struct py_loop *self)
{
	struct ffs_group *group = self->group;
	self->group = NULL;
	if (group == NULL)
		return;
	Py_BEGIN_ALLOW_THREADS ffs_group_close(group);
	ffs_group_free(group);
	Py_END_ALLOW_THREADS
}

/* The names of enum ffs_io and of enum ffs_reads_means, in their order. */
static const char *const io_names[] = {"auto", "buffered", "direct"};
static const char *const reads_names[] = {"auto", "ring", "threads"};

/* The place of a name in its list; -1 if it is not there. */
static int find_name(const char *const names[3], const char *name)
{
	for (int i = 0; i < 3; i++)
		if (strcmp(names[i], name) == 0)
			return i;
	return -1;
}

static bool options_are_right(const struct ffs_group_options *options, int io, int reads)
{
	if (options->loop_count < 1 || options->loop_count > FFS_LOOPS_MAX ||
	    strlen(options->congestion) > FFS_CONGESTION_BYTES_MAX) {
		PyErr_Format(PyExc_ValueError,
		             "a data loop is made once, with 1 to %u loops and a congestion control name "
		             "of at most %u bytes",
		             FFS_LOOPS_MAX, FFS_CONGESTION_BYTES_MAX);
		return false;
	}
	uint64_t piece = FFS_ARENA_PIECE_BYTES_MAX;
	if (options->read_buffer_bytes == 0 || options->read_buffer_bytes % piece != 0 ||
	    options->read_buffer_bytes > FFS_READ_BUFFER_BYTES_MAX) {
		PyErr_Format(PyExc_ValueError, "read_buffer_bytes is a multiple of %u up to %llu",
		             (unsigned int)piece, (unsigned long long)FFS_READ_BUFFER_BYTES_MAX);
		return false;
	}
	if (io < 0 || reads < 0) {
		PyErr_SetString(PyExc_ValueError, "io is auto, buffered or direct; reads is auto, ring or "
		                                  "threads");
		return false;
	}
	return true;
}

/* How queue pairs may be connected. */
static int take_way(struct ffs_rdma_options *wish, const char *name)
{
	wish->no_exchange = strcmp(name, "cm") == 0;
	wish->no_cm = strcmp(name, "exchange") == 0;
	if (wish->no_exchange || wish->no_cm || strcmp(name, "auto") == 0)
		return 0;
	PyErr_Format(PyExc_ValueError, "rdma_connect must be 'auto', 'exchange' or 'cm', not '%s'",
	             name);
	return -1;
}

static int parse_options(struct py_loop *self, PyObject *args, PyObject *kwargs, PyObject **stores,
                         struct ffs_group_options *options)
{
	static char *names[] = {"stores",
	                        "loops",
	                        "write_buffer_bytes",
	                        "congestion",
	                        "io",
	                        "read_buffer_bytes",
	                        "reads",
	                        "slow_read_ms",
	                        "rdma",
	                        "rdma_device",
	                        "rdma_gid_index",
	                        "rdma_max_sge",
	                        "rdma_connect",
	                        NULL};
	int loops = 1;
	unsigned long long write_buffer_bytes = WRITE_BUFFER_BYTES_DEFAULT;
	unsigned long long read_buffer_bytes = READ_BUFFER_BYTES_DEFAULT;
	unsigned long long slow_read_ms = SLOW_READ_MS_DEFAULT;
	const char *congestion = "cubic";
	const char *io = "auto";
	const char *reads = "auto";
	const char *rdma_device = "";
	const char *rdma_connect = "auto";
	int rdma = 1;
	struct ffs_rdma_options wish = {.gid_index = -1};
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!|$iKssKsKpsiIs", names, &PyDict_Type, stores,
	                                 &loops, &write_buffer_bytes, &congestion, &io,
	                                 &read_buffer_bytes, &reads, &slow_read_ms, &rdma, &rdma_device,
	                                 &wish.gid_index, &wish.sges_max, &rdma_connect) ||
	    take_way(&wish, rdma_connect) != 0)
		return -1;
	if (strlen(rdma_device) >= sizeof(wish.device)) {
		PyErr_Format(PyExc_ValueError, "the name of an RDMA device has up to %zu bytes",
		             sizeof(wish.device) - 1);
		return -1;
	}
	wish.off = !rdma;
	memcpy(wish.device, rdma_device, strlen(rdma_device) + 1);
	int io_found = find_name(io_names, io);
	int reads_found = find_name(reads_names, reads);
	*options = (struct ffs_group_options){
		.loop_count = self->group != NULL || loops < 1 ? 0 : (uint32_t)loops,
		.write_buffer_bytes = write_buffer_bytes,
		.read_buffer_bytes = read_buffer_bytes,
		.congestion = congestion,
		.slow_read_ns = slow_read_ms * UINT64_C(1000000),
		.io = (enum ffs_io)io_found,
		.reads = (enum ffs_reads_means)reads_found,
		.rdma = wish,
	};
	return options_are_right(options, io_found, reads_found) ? 0 : -1;
}

static int loop_init(PyObject *object, PyObject *args, PyObject *kwargs)
{
	struct py_loop *self = (struct py_loop *)object;
	PyObject *stores;
	struct ffs_group_options options;
	int error = 0;
	if (parse_options(self, args, kwargs, &stores, &options) != 0)
		return -1;
	Py_BEGIN_ALLOW_THREADS self->group = ffs_group_open(&options, &error);
	Py_END_ALLOW_THREADS if (self->group == NULL)
	{
		raise_errno(error);
		return -1;
	}
	if (add_stores(self, stores) != 0) {
		PyObject *type;
		PyObject *value;
		PyObject *traceback;
		PyErr_Fetch(&type, &value, &traceback);
		end_group(self);
		PyErr_Restore(type, value, traceback);
		return -1;
	}
	return 0;
}

static void loop_dealloc(PyObject *object)
{
	PyTypeObject *type = Py_TYPE(object);
	end_group((struct py_loop *)object);
	freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
	release(object);
	Py_DECREF(type);
}

static PyObject *loop_close(PyObject *object, PyObject *unused)
{
	struct ffs_group *group = ((struct py_loop *)object)->group;
	(void)unused;
	if (group != NULL) {
		Py_BEGIN_ALLOW_THREADS ffs_group_close(group);
		Py_END_ALLOW_THREADS
	}
	Py_RETURN_NONE;
}

static PyObject *loop_add_store(PyObject *object, PyObject *args)
{
	PyObject *target_id;
	PyObject *store;
	struct ffs_group *group = open_group(object);
	PyObject *module = PyType_GetModule(Py_TYPE(object));
	if (group == NULL || module == NULL || !PyArg_ParseTuple(args, "OO", &target_id, &store) ||
	    add_store(group, target_id, store, ffs_storage_state(module)->store_type) != 0)
		return NULL;
	Py_RETURN_NONE;
}

static PyObject *loop_event_fd(PyObject *object, PyObject *unused)
{
	struct ffs_group *group = open_group(object);
	(void)unused;
	return group == NULL ? NULL : PyLong_FromLong(group->events.fd);
}

static PyObject *loop_adopt(PyObject *object, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"fd", "local", "token_id", NULL};
	int fd, local = 0;
	const char *token_id = NULL;
	Py_ssize_t bytes = 0;
	struct ffs_group *group = open_group(object);
	if (group == NULL ||
	    !PyArg_ParseTupleAndKeywords(args, kwargs, "i|$pz#", names, &fd, &local, &token_id, &bytes))
		return NULL;
	if (token_id != NULL && bytes != FFS_TOKEN_ID_BYTES)
		return PyErr_Format(PyExc_ValueError, "a token's id has %u bytes", FFS_TOKEN_ID_BYTES);
	int64_t id = ffs_group_adopt(group, fd, local != 0, (const uint8_t *)token_id);
	if (id < 0)
		return raise_errno((int)-id);
	return PyLong_FromLongLong(id);
}

static PyObject *loop_close_connection(PyObject *object, PyObject *args)
{
	unsigned long long connection_id;
	struct ffs_group *group = open_group(object);
	if (group == NULL || !PyArg_ParseTuple(args, "K", &connection_id))
		return NULL;
	int result = ffs_group_close_conn(group, connection_id);
	if (result != 0)
		return raise_errno(-result);
	Py_RETURN_NONE;
}

static PyObject *loop_set_grant_keys(PyObject *object, PyObject *args)
{
	struct ffs_grant_key keys[FFS_GRANT_KEYS] = {0};
	const char *bytes[FFS_GRANT_KEYS];
	Py_ssize_t counts[FFS_GRANT_KEYS];
	struct ffs_group *group = open_group(object);
	if (group == NULL ||
	    !PyArg_ParseTuple(args, "(Iy#)(Iy#)(Iy#)", &keys[0].id, &bytes[0], &counts[0], &keys[1].id,
	                      &bytes[1], &counts[1], &keys[2].id, &bytes[2], &counts[2]))
		return NULL;
	for (uint32_t i = 0; i < FFS_GRANT_KEYS; i++) {
		if (counts[i] != FFS_MAC_KEY_BYTES)
			return PyErr_Format(PyExc_ValueError, "a grant key has %u bytes", FFS_MAC_KEY_BYTES);
		memcpy(keys[i].key, bytes[i], FFS_MAC_KEY_BYTES);
	}
	ffs_group_set_grant_keys(group, keys);
	Py_RETURN_NONE;
}

static PyObject *loop_close_idle(PyObject *object, PyObject *args)
{
	unsigned int count;
	struct ffs_group *group = open_group(object);
	if (group == NULL || !PyArg_ParseTuple(args, "I", &count))
		return NULL;
	ffs_group_close_idle(group, count);
	Py_RETURN_NONE;
}

/* --------------------------------------------------------------------------------------- events */

static PyObject *event_tuple(const struct ffs_event *event)
{
	switch (event->kind) {
	case FFS_EVENT_WRITE:
		return Py_BuildValue("(iKKKIIIIIi)", (int)event->kind, (unsigned long long)event->write_id,
		                     (unsigned long long)event->connection_id,
		                     (unsigned long long)event->blob, event->chunk, event->target,
		                     event->chain, event->chain_version, event->length, (int)event->hop);
	case FFS_EVENT_PERSISTED:
	case FFS_EVENT_FORWARDED:
		return Py_BuildValue("(iKi)", (int)event->kind, (unsigned long long)event->write_id,
		                     (int)event->status);
	case FFS_EVENT_CLOSED:
	case FFS_EVENT_PEER_CLOSED:
		return Py_BuildValue("(iK)", (int)event->kind, (unsigned long long)event->connection_id);
	case FFS_EVENT_SUSPECT:
		return Py_BuildValue("(iIKI)", (int)event->kind, event->target,
		                     (unsigned long long)event->blob, event->chunk);
	case FFS_EVENT_REFUSED:
		return Py_BuildValue("(iKKiKI)", (int)event->kind, (unsigned long long)event->connection_id,
		                     (unsigned long long)event->write_id, (int)event->hop,
		                     (unsigned long long)event->blob, event->length);
	case FFS_EVENT_SLOW_READ:
		return Py_BuildValue(
			"(iKKKIKKK)", (int)event->kind, (unsigned long long)event->connection_id,
			(unsigned long long)event->slow.trace_id, (unsigned long long)event->blob,
			event->length, (unsigned long long)event->slow.bytes,
			(unsigned long long)event->slow.took_ms, (unsigned long long)event->slow.queued_ms);
	default:
		return Py_BuildValue("(iI)", (int)event->kind, event->target);
	}
}

static PyObject *loop_poll(PyObject *object, PyObject *unused)
{
	struct ffs_group *group = open_group(object);
	struct ffs_event *events;
	(void)unused;
	if (group == NULL)
		return NULL;
	ssize_t count = ffs_group_poll(group, &events);
	if (count < 0)
		return PyErr_NoMemory();
	PyObject *list = PyList_New(count);
	for (ssize_t i = 0; list != NULL && i < count; i++) {
		PyObject *tuple = event_tuple(&events[i]);
		if (tuple == NULL || PyList_SetItem(list, i, tuple) != 0)
			Py_CLEAR(list);
	}
	free(events);
	return list;
}

/* --------------------------------------------------------------------------------- persist, ack */

/* A list of ids as an array that the caller frees; NULL with an exception set. */
static uint64_t *take_ids(PyObject *list, Py_ssize_t *count)
{
	*count = PySequence_Size(list);
	if (*count < 0)
		return NULL;
	uint64_t *write_ids = ffs_sys_calloc((size_t)*count + 1, sizeof(uint64_t));
	if (write_ids == NULL)
		return (uint64_t *)(void *)PyErr_NoMemory();
	for (Py_ssize_t i = 0; i < *count; i++) {
		PyObject *item = PySequence_GetItem(list, i);
		write_ids[i] = item == NULL ? 0 : PyLong_AsUnsignedLongLong(item);
		Py_XDECREF(item);
		if (PyErr_Occurred()) {
			free(write_ids);
			return NULL;
		}
	}
	return write_ids;
}

static PyObject *loop_persist(PyObject *object, PyObject *list)
{
	struct ffs_group *group = open_group(object);
	Py_ssize_t count;
	if (group == NULL)
		return NULL;
	uint64_t *write_ids = take_ids(list, &count);
	if (write_ids == NULL)
		return NULL;
	int result;
	Py_BEGIN_ALLOW_THREADS result = ffs_group_persist(group, write_ids, (size_t)count);
	Py_END_ALLOW_THREADS free(write_ids);
	if (result != 0)
		return PyErr_Format(PyExc_ValueError, "a write id is unknown or already being persisted");
	Py_RETURN_NONE;
}

static PyObject *loop_forward(PyObject *object, PyObject *args)
{
	struct ffs_group *group = open_group(object);
	PyObject *list;
	unsigned long long peer_id;
	unsigned int target;
	Py_ssize_t count;
	if (group == NULL || !PyArg_ParseTuple(args, "OKI", &list, &peer_id, &target))
		return NULL;
	uint64_t *write_ids = take_ids(list, &count);
	if (write_ids == NULL)
		return NULL;
	int result;
	Py_BEGIN_ALLOW_THREADS result =
		ffs_group_forward(group, write_ids, (size_t)count, peer_id, target);
	Py_END_ALLOW_THREADS free(write_ids);
	if (result == -EINVAL)
		return PyErr_Format(PyExc_ValueError,
		                    "peer %llu has writes of another hop, or the chain "
		                    "is longer than %u",
		                    peer_id, FFS_HOPS_MAX);
	if (result != 0)
		return PyErr_Format(PyExc_ValueError, "a write id is unknown or already being forwarded");
	Py_RETURN_NONE;
}

static PyObject *loop_add_peer(PyObject *object, PyObject *args)
{
	int fd;
	struct ffs_group *group = open_group(object);
	if (group == NULL || !PyArg_ParseTuple(args, "i", &fd))
		return NULL;
	int64_t id = ffs_group_add_peer(group, fd);
	return id < 0 ? raise_errno((int)-id) : PyLong_FromLongLong(id);
}

static PyObject *loop_close_peer(PyObject *object, PyObject *args)
{
	unsigned long long peer_id;
	struct ffs_group *group = open_group(object);
	if (group == NULL || !PyArg_ParseTuple(args, "K", &peer_id))
		return NULL;
	ffs_group_close_peer(group, peer_id);
	Py_RETURN_NONE;
}

static PyObject *loop_ack(PyObject *object, PyObject *args)
{
	unsigned long long write_id;
	unsigned int status;
	struct ffs_group *group = ((struct py_loop *)object)->group;
	if (!PyArg_ParseTuple(args, "KI", &write_id, &status) || (group != NULL && !is_ours(group)))
		return NULL;
	if (status >= FFS_STATUS_PENDING)
		return PyErr_Format(PyExc_ValueError, "status %u is not an error code", status);
	int result = group == NULL ? 0 : ffs_group_ack(group, write_id, (uint16_t)status);
	if (result == -EBUSY)
		return PyErr_Format(PyExc_ValueError, "write %llu is being persisted or forwarded",
		                    write_id);
	if (result != 0)
		return PyErr_Format(PyExc_ValueError, "write %llu is unknown", write_id);
	Py_RETURN_NONE;
}

static PyObject *loop_set_chain_version(PyObject *object, PyObject *args)
{
	unsigned int target;
	unsigned int version;
	struct ffs_group *group = open_group(object);
	if (group == NULL || !PyArg_ParseTuple(args, "II", &target, &version))
		return NULL;
	if (ffs_group_set_chain_version(group, target, version) != 0)
		return PyErr_Format(PyExc_ValueError, "target %u is not served by this data loop", target);
	Py_RETURN_NONE;
}

static PyObject *loop_stats(PyObject *object, PyObject *unused)
{
	struct ffs_group *group = open_group(object);
	(void)unused;
	return group == NULL ? NULL : ffs_py_loop_stats(group);
}

static PyObject *loop_latency(PyObject *object, PyObject *unused)
{
	struct ffs_group *group = open_group(object);
	(void)unused;
	return group == NULL ? NULL : ffs_py_loop_latency(group);
}

static PyObject *loop_slowest(PyObject *object, PyObject *unused)
{
	struct ffs_group *group = open_group(object);
	(void)unused;
	return group == NULL ? NULL : ffs_py_loop_slowest(group);
}

static PyMethodDef loop_methods[] = {
	{"add_store", loop_add_store, METH_VARARGS, NULL},
	{"event_fd", loop_event_fd, METH_NOARGS, NULL},
	{"adopt", (PyCFunction)(void (*)(void))loop_adopt, METH_VARARGS | METH_KEYWORDS, NULL},
	{"close_connection", loop_close_connection, METH_VARARGS, NULL},
	{"close_idle", loop_close_idle, METH_VARARGS, NULL},
	{"set_grant_keys", loop_set_grant_keys, METH_VARARGS, NULL},
	{"poll", loop_poll, METH_NOARGS, NULL},
	{"persist", loop_persist, METH_O, NULL},
	{"ack", loop_ack, METH_VARARGS, NULL},
	{"add_peer", loop_add_peer, METH_VARARGS, NULL},
	{"close_peer", loop_close_peer, METH_VARARGS, NULL},
	{"forward", loop_forward, METH_VARARGS, NULL},
	{"set_chain_version", loop_set_chain_version, METH_VARARGS, NULL},
	{"stats", loop_stats, METH_NOARGS, NULL},
	{"latency", loop_latency, METH_NOARGS, NULL},
	{"slowest", loop_slowest, METH_NOARGS, NULL},
	{"close", loop_close, METH_NOARGS, NULL},
	{NULL, NULL, 0, NULL},
};

static PyType_Slot loop_slots[] = {
	{Py_tp_doc, "Threads that own data connections."},
	{Py_tp_init, loop_init},
	{Py_tp_dealloc, loop_dealloc},
	{Py_tp_methods, loop_methods},
	{0, NULL},
};

PyType_Spec ffs_loop_spec = {
	.name = "ffs._storage.DataLoop",
	.basicsize = sizeof(struct py_loop),
	.flags = Py_TPFLAGS_DEFAULT,
	.slots = loop_slots,
};
