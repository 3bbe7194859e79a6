/*
 * ffs._reader.Mapping: read-only memory that shows located chunks side by side, without a copy.
 *
 * Previous hop: client/mapped.py, which has had every range located, and checked, by read_batch on
 * connections of its own. Next: the page cache, at the first touch of each page.
 *
 * Why the bytes never become others: an extent is written once; the pin keeps it while the
 * connection lives, and a read lock on the range, held by the open file that the daemon sent, keeps
 * it when daemon and connection are gone: the daemon asks the kernel before it frees a slot
 * (native/storage/drop.c). Locks are taken first, then the connection is asked whether it lives:
 * if so, the pin was there until the lock was.
 *
 * Extent files are never cut, so there is no SIGBUS but where the disk cannot be read.
 * Fork: a child does not have the memory (MADV_DONTFORK): its lock could end with the parent.
 * Copies: none. Threads: any, once it is made.
 */
#include "reader/module.h"

#include <stdlib.h>
#include <string.h>

#include "core/status.h"
#include "core/sys.h"
#include "reader/counters.h"

#define OP_BYTES 40u /* of an operation as read_batch takes it, see ffs/_reader.pyi */

struct mapping_object {
	PyObject_HEAD uint8_t *memory; /* NULL: nothing is mapped */
	size_t bytes;                  /* whole pages */
	size_t start;                  /* of what was asked for, in the first page */
	size_t length;
	uint32_t generation;
	PyObject *owner; /* of the connections */
};

/* One range of a chunk, and where it goes. */
struct part {
	const struct ffs_local *local;
	const struct ffs_located *located;
	uint64_t place;  /* in the mapping */
	uint64_t offset; /* in the data file */
	uint32_t length;
};

struct plan {
	struct part *parts;
	uint32_t count;
	struct ffs_conn **conns;
	uint32_t conn_count;
	uint64_t page;
	uint64_t start;
	uint64_t length;
	uint64_t bytes;
};

/* -------------------------------------------------------------------------------------- the plan
 */

/* Take an operation: where its range lies; false if that is not known. */
static bool take_part(struct plan *plan, struct part *part, const uint8_t *raw)
{
	uint32_t offset = ffs_load_u32(raw + 24);
	uint16_t leg = ffs_load_u16(raw + 32);
	part->length = ffs_load_u32(raw + 28);
	if (leg >= plan->conn_count || part->length == 0)
		return false;
	part->local = plan->conns[leg]->local;
	uint32_t at = ffs_local_find(part->local, ffs_load_u64(raw), ffs_load_u32(raw + 16),
	                             ffs_load_u32(raw + 20));
	if (at == UINT32_MAX || part->local->located[at].state != FFS_LOCATED_KNOWN)
		return false;
	part->located = &part->local->located[at];
	part->offset = part->located->data_offset + offset;
	part->place = plan->length;
	plan->length += part->length;
	return offset <= part->located->length && part->length <= part->located->length - offset;
}

/* Lay the ranges out side by side; false where pages do not allow it. */
static bool lay_out(struct plan *plan, const uint8_t *raw)
{
	for (uint32_t i = 0; i < plan->count; i++, raw += OP_BYTES) {
		struct part *part = &plan->parts[i];
		if (!take_part(plan, part, raw))
			return false;
		if (i == 0)
			plan->start = part->offset % plan->page;
		else if (part->offset % plan->page != 0 || (plan->start + part->place) % plan->page != 0)
			return false;
	}
	plan->bytes = (plan->start + plan->length + plan->page - 1) / plan->page * plan->page;
	return plan->count > 0;
}

/* --------------------------------------------------------------------------------------- mapping
 */

/* Lock a range, if the file has it. */
static bool lock_part(const struct plan *plan, const struct part *part)
{
	int fd = part->local->data_fds[part->located->file];
	uint64_t first = part->offset - part->offset % plan->page;
	struct flock lock = {.l_type = F_RDLCK,
	                     .l_whence = SEEK_SET,
	                     .l_start = (off_t)first,
	                     .l_len = (off_t)(part->offset + part->length - first)};
	struct stat facts;
	return ffs_sys_lock(fd, F_OFD_SETLK, &lock) == 0 && ffs_sys_fstat(fd, &facts) == 0 &&
	       (uint64_t)facts.st_size >= part->offset + part->length;
}

static bool hold(const struct plan *plan)
{
	for (uint32_t i = 0; i < plan->count; i++) {
		if (!lock_part(plan, &plan->parts[i]))
			return false;
	}
	for (uint32_t i = 0; i < plan->conn_count; i++) {
		if (ffs_local_still_pinned(plan->conns[i]) != FFS_OK)
			return false;
	}
	return true;
}

static bool show(const struct plan *plan, uint8_t *memory)
{
	for (uint32_t i = 0; i < plan->count; i++) {
		const struct part *part = &plan->parts[i];
		uint64_t before = part->offset % plan->page;
		if (ffs_sys_map_file_at(memory + plan->start + part->place - before,
		                        part->local->data_fds[part->located->file], part->length + before,
		                        part->offset - before) != 0)
			return false;
	}
	return ffs_sys_madvise(memory, plan->bytes, MADV_DONTFORK) == 0;
}

/* The memory, NULL where it is not to be had. */
static uint8_t *map(const struct plan *plan)
{
	if (!hold(plan))
		return NULL;
	uint8_t *memory = ffs_sys_reserve(plan->bytes);
	if (memory == MAP_FAILED)
		return NULL;
	if (show(plan, memory))
		return memory;
	(void)munmap(memory, plan->bytes);
	return NULL;
}

/* ---------------------------------------------------------------------------------------- object
 */

static void mapping_dealloc(PyObject *self)
{
	struct mapping_object *mapping = (struct mapping_object *)self;
	PyTypeObject *type = Py_TYPE(self);
	/* In a forked child something else may be there. */
	if (mapping->memory != NULL && mapping->generation == ffs_generation())
		(void)munmap(mapping->memory, mapping->bytes);
	Py_XDECREF(mapping->owner); /* after that the range may be anything */
	freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
	release(self);
	Py_DECREF(type);
}

static int mapping_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
	const struct mapping_object *mapping = (struct mapping_object *)self;
	if (mapping->generation != ffs_generation()) {
		view->obj = NULL;
		PyErr_SetString(PyExc_BufferError, "mapped by the parent process; read it again here");
		return -1;
	}
	return PyBuffer_FillInfo(view, self, mapping->memory + mapping->start,
	                         (Py_ssize_t)mapping->length, 1, flags);
}

static PyType_Slot slots[] = {
	{Py_tp_doc, "Read-only memory that shows chunks; a buffer. See ffs/_reader.pyi."},
	{Py_tp_dealloc, mapping_dealloc},
	{Py_bf_getbuffer, mapping_getbuffer},
	{0, NULL},
};

static PyType_Spec spec = {
	.name = "ffs._reader.Mapping",
	.basicsize = sizeof(struct mapping_object),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
	.slots = slots,
};

PyObject *ffs_mapping_type_new(PyObject *module)
{
	return PyType_FromModuleAndSpec(module, &spec, NULL);
}

/* ------------------------------------------------------------------------------------------ call
 */

/* Lay out and map without the interpreter's lock; None where it cannot be. */
static PyObject *make_mapping(struct plan *plan, const uint8_t *raw, PyTypeObject *type,
                              PyObject *owner)
{
	allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
	struct mapping_object *mapping = (struct mapping_object *)alloc(type, 0);
	if (mapping == NULL)
		return NULL;
	plan->page = (uint64_t)sysconf(_SC_PAGESIZE);
	mapping->generation = ffs_generation();
	Py_BEGIN_ALLOW_THREADS;
	mapping->memory = lay_out(plan, raw) ? map(plan) : NULL;
	Py_END_ALLOW_THREADS;
	if (mapping->memory == NULL) {
		Py_DECREF(mapping);
		Py_RETURN_NONE;
	}
	mapping->bytes = plan->bytes;
	mapping->start = plan->start;
	mapping->length = plan->length;
	mapping->owner = Py_NewRef(owner);
	return (PyObject *)mapping;
}

/* Own the connections of a tuple; how many are counted in the plan. */
static int claim(struct plan *plan, PyObject *connections, PyObject *type)
{
	for (Py_ssize_t i = 0; i < PyTuple_Size(connections); i++) {
		PyObject *object = PyTuple_GetItem(connections, i);
		if (!Py_IS_TYPE(object, (PyTypeObject *)type)) {
			PyErr_SetString(PyExc_TypeError, "connections must hold Connection objects");
			return -1;
		}
		struct ffs_conn *conn = &((struct ffs_connection_object *)object)->conn;
		if (conn->local == NULL || !conn->local->mapped ||
		    ffs_conn_claim(conn) != FFS_CONN_CLAIMED) {
			PyErr_SetString(PyExc_ValueError, "a connection is not for mapping, busy or closed");
			return -1;
		}
		plan->conns[plan->conn_count++] = conn;
	}
	return 0;
}

static PyObject *map_located(PyObject *module, PyObject *args)
{
	struct ffs_module_state *state = PyModule_GetState(module);
	PyObject *connections, *owner, *result = NULL;
	Py_buffer ops;
	if (!PyArg_ParseTuple(args, "O!y*O:map_located", &PyTuple_Type, &connections, &ops, &owner))
		return NULL;
	struct plan plan = {.count = (uint32_t)((size_t)ops.len / OP_BYTES)};
	plan.parts = ffs_sys_calloc((size_t)plan.count + 1, sizeof(*plan.parts));
	plan.conns = ffs_sys_calloc((size_t)PyTuple_Size(connections) + 1, sizeof(struct ffs_conn *));
	if (plan.parts == NULL || plan.conns == NULL)
		PyErr_NoMemory();
	else if (claim(&plan, connections, state->connection_type) == 0)
		result = make_mapping(&plan, ops.buf, (PyTypeObject *)state->mapping_type, owner);
	for (uint32_t i = 0; i < plan.conn_count; i++)
		ffs_conn_release(plan.conns[i]);
	free(plan.conns);
	free(plan.parts);
	PyBuffer_Release(&ops);
	return result;
}

PyMethodDef ffs_mapped_methods[] = {
	{"map_located", map_located, METH_VARARGS, "Map ranges of located chunks side by side."},
	{NULL, NULL, 0, NULL},
};
