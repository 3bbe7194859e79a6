/*
 * connect_qp and Region: going over to RDMA, and memory that is registered once. See
 * ffs/_reader.pyi. Next hop: rdma.h.
 */
#include <string.h>

#include "reader/ask_call.h"
#include "reader/rdma.h"

#define DEADLINE_MS_DEFAULT 5000
#define WINDOW_BYTES_DEFAULT (UINT64_C(64) << 20)

/* ------------------------------------------------------------------------------------ connect_qp
 */

/* The connection, which must go by TCP, for this call alone; -1 with an exception set. */
static int claim(struct ffs_ask_call *call, PyObject *module, PyObject *connection,
                 long long deadline_ms)
{
	int claimed = ffs_ask_call_claim(call, module, connection, deadline_ms);
	if (claimed < 0)
		return -1;
	if (claimed == 0 && call->ask.conn->local == NULL && call->ask.conn->rdma == NULL)
		return 0;
	PyErr_SetString(PyExc_ValueError,
	                claimed > 0 ? "connection is closed" : "connection does not go by TCP");
	if (claimed == 0)
		ffs_conn_release(call->ask.conn);
	return -1;
}

static PyObject *go_over(struct ffs_ask_call *call, const struct ffs_rdma_options *options)
{
	char reason[FFS_RDMA_REASON_BYTES];
	enum ffs_status status;
	ffs_ask_call_begin(call);
	enum ffs_rdma_fault fault = ffs_rdma_connect(&call->ask, options, &status, reason);
	int raised = ffs_ask_call_end(call);
	ffs_conn_release(call->ask.conn);
	return raised != 0 ? NULL : Py_BuildValue("(iis)", (int)status, (int)fault, reason);
}

static const char *const way_names[] = {
	[FFS_RDMA_AUTO] = "auto", [FFS_RDMA_EXCHANGE] = "exchange", [FFS_RDMA_BY_CM] = "cm"};

static int find_way(const char *name, enum ffs_rdma_way *way)
{
	for (size_t i = 0; i < sizeof(way_names) / sizeof(way_names[0]); i++) {
		if (strcmp(way_names[i], name) != 0)
			continue;
		*way = (enum ffs_rdma_way)i;
		return 0;
	}
	PyErr_Format(PyExc_ValueError, "way must be 'auto', 'exchange' or 'cm', not '%s'", name);
	return -1;
}

static PyObject *connect_qp(PyObject *module, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"connection", "device",      "gid_index", "window_bytes",
	                        "windows",    "deadline_ms", "way",       NULL};
	struct ffs_rdma_options options = {
		.device = "", .gid_index = -1, .window_bytes = WINDOW_BYTES_DEFAULT};
	unsigned long long window_bytes = WINDOW_BYTES_DEFAULT;
	long long deadline_ms = DEADLINE_MS_DEFAULT;
	const char *way = "auto";
	int windows = 1;
	PyObject *connection;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$siKpLs:connect_qp", names, &connection,
	                                 &options.device, &options.gid_index, &window_bytes, &windows,
	                                 &deadline_ms, &way) ||
	    find_way(way, &options.way) != 0)
		return NULL;
	options.window_bytes = window_bytes;
	options.windows = windows != 0;
	struct ffs_ask_call call = {0};
	return claim(&call, module, connection, deadline_ms) != 0 ? NULL : go_over(&call, &options);
}

static PyObject *rdma_usage(PyObject *module, PyObject *unused)
{
	(void)module;
	(void)unused;
	return Py_BuildValue("{sIsK}", "regions", (unsigned int)ffs_rdma_regions(), "bytes_asked",
	                     (unsigned long long)ffs_rdma_bytes_asked());
}

/* ---------------------------------------------------------------------------------------- Region
 */

struct region_object {
	PyObject_HEAD Py_buffer memory;
	struct ffs_declared *declared;
};

static PyObject *region_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"memory", NULL};
	PyObject *memory;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:Region", names, &memory))
		return NULL;
	allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
	struct region_object *self = (struct region_object *)alloc(type, 0);
	if (self == NULL)
		return NULL;
	if (PyObject_GetBuffer(memory, &self->memory, PyBUF_WRITABLE) != 0) {
		Py_DECREF(self);
		return NULL;
	}
	self->declared = ffs_rdma_declare(self->memory.buf, (size_t)self->memory.len);
	if (self->declared == NULL) {
		Py_DECREF(self);
		return PyErr_NoMemory();
	}
	return (PyObject *)self;
}

/* The registration ends before the memory may go. */
static void let_go(struct region_object *self)
{
	if (self->declared != NULL)
		ffs_rdma_withdraw_declared(self->declared);
	self->declared = NULL;
	if (self->memory.obj != NULL)
		PyBuffer_Release(&self->memory);
}

static PyObject *region_release(PyObject *self, PyObject *unused)
{
	(void)unused;
	let_go((struct region_object *)self);
	Py_RETURN_NONE;
}

static void region_dealloc(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);
	let_go((struct region_object *)self);
	freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
	release(self);
	Py_DECREF(type);
}

static PyMethodDef region_methods[] = {
	{"release", region_release, METH_NOARGS,
     "Register it no more, and let go of the memory; calls that use it end it when they end."},
	{NULL, NULL, 0, NULL},
};

static PyType_Slot region_slots[] = {
	{Py_tp_doc, "Memory that is read into again and again. See ffs/_reader.pyi."},
	{Py_tp_new, region_new},
	{Py_tp_dealloc, region_dealloc},
	{Py_tp_methods, region_methods},
	{0, NULL},
};

static PyType_Spec region_spec = {
	.name = "ffs._reader.Region",
	.basicsize = sizeof(struct region_object),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
	.slots = region_slots,
};

PyObject *ffs_region_type_new(PyObject *module)
{
	return PyType_FromModuleAndSpec(module, &region_spec, NULL);
}

PyMethodDef ffs_qp_methods[] = {
	{"connect_qp", (PyCFunction)(void (*)(void))connect_qp, METH_VARARGS | METH_KEYWORDS,
     "Have a connection go over to RDMA. See ffs/_reader.pyi."},
	{"rdma_usage", rdma_usage, METH_NOARGS,
     "How many registrations of callers' memory there are, and the bytes asked for by RDMA."},
	{NULL, NULL, 0, NULL},
};
