/*
 * read_batch and write_batch: arguments in, the engine run without the interpreter's lock, statuses
 * out. Every exit releases buffers and connections; see ffs/_reader.pyi for the contract.
 */
#include "reader/module.h"

#include <errno.h>
#include <string.h>

#include "core/sys.h"
#include "reader/batch.h"

#define MS_MAX INT64_C(0x7fffffff) /* 24 days: keeps nanoseconds inside 64 bits */

/* One call's hold on Python objects. */
struct call {
	struct ffs_batch batch;
	struct ffs_shared shared;
	PyObject *connections; /* a tuple, which keeps them alive */
	Py_buffer ops;
	Py_buffer memory;
	Py_buffer timings; /* without an object: the call is not sampled */
	uint32_t claimed;  /* legs whose connection was looked at, from the first on */
	PyThreadState *thread;
};

struct options {
	long long deadline_ms;
	PyObject *stall_ms; /* NULL: off; a number for all connections, or one for each */
	long long hedge_ms;
	unsigned int hedge_ranges;
	unsigned long long thread_bytes;
	int verify;
	unsigned long long trace_id;
	PyObject *timings; /* NULL, None: not sampled */
};

static int check_options(const struct options *options)
{
	if (options->deadline_ms < 1 || options->deadline_ms > MS_MAX) {
		PyErr_SetString(PyExc_ValueError, "deadline_ms must be given, and be from 1 to 2**31 - 1");
		return -1;
	}
	if (options->hedge_ms < 0 || options->hedge_ms > MS_MAX) {
		PyErr_SetString(PyExc_ValueError, "hedge_ms must be from 0 to 2**31 - 1");
		return -1;
	}
	return 0;
}

/* One stall time, in ms, into `stall_ns`. */
static int take_stall(PyObject *number, int64_t *stall_ns)
{
	long long ms = PyLong_AsLongLong(number);
	if (ms == -1 && PyErr_Occurred() != NULL)
		return -1;
	if (ms < 0 || ms > MS_MAX) {
		PyErr_SetString(PyExc_ValueError, "stall_ms must be from 0 to 2**31 - 1");
		return -1;
	}
	*stall_ns = ms * 1000000;
	return 0;
}

/* The stall time of each leg: all the same, or as a sequence says. */
static int take_stalls(struct call *call, PyObject *stall_ms)
{
	struct ffs_leg *legs = call->batch.legs;
	uint32_t count = call->batch.leg_count;
	if (stall_ms == NULL)
		return 0;
	if (PyLong_Check(stall_ms)) {
		int64_t stall_ns;
		if (take_stall(stall_ms, &stall_ns) != 0)
			return -1;
		for (uint32_t i = 0; i < count; i++)
			legs[i].stall_ns = stall_ns;
		return 0;
	}
	PyObject *each = PySequence_Tuple(stall_ms);
	if (each == NULL)
		return -1;
	int failed = 0;
	if (PyTuple_Size(each) != (Py_ssize_t)count) {
		PyErr_SetString(PyExc_ValueError, "stall_ms must name a time for each connection");
		failed = -1;
	}
	for (uint32_t i = 0; failed == 0 && i < count; i++)
		failed = take_stall(PyTuple_GetItem(each, (Py_ssize_t)i), &legs[i].stall_ns);
	Py_DECREF(each);
	return failed;
}

static int refuse_busy(Py_ssize_t index)
{
	PyObject *message = PyUnicode_FromFormat("connection %zd is in use by another call", index);
	if (message == NULL)
		return -1;
	PyObject *error = PyObject_CallFunction(PyExc_BlockingIOError, "iO", EAGAIN, message);
	if (error != NULL)
		PyErr_SetObject(PyExc_BlockingIOError, error);
	Py_XDECREF(error);
	Py_DECREF(message);
	return -1;
}

/* Own every connection for the call; a dead one stays NULL, and its operations will say so. */
static int claim_connections(struct call *call, PyObject *type)
{
	for (uint32_t i = 0; i < call->batch.leg_count; i++, call->claimed++) {
		PyObject *object = PyTuple_GetItem(call->connections, (Py_ssize_t)i);
		/* Not isinstance(), which believes an object's `__class__`. */
		if (!Py_IS_TYPE(object, (PyTypeObject *)type)) {
			PyErr_SetString(PyExc_TypeError, "connections must hold Connection objects");
			return -1;
		}
		struct ffs_conn *conn = &((struct ffs_connection_object *)object)->conn;
		switch (ffs_conn_claim(conn)) {
		case FFS_CONN_CLAIMED:
			call->batch.legs[i].conn = conn;
			break;
		case FFS_CONN_DEAD:
			break;
		case FFS_CONN_IN_USE:
			return refuse_busy((Py_ssize_t)i);
		default:
			PyErr_NoMemory();
			return -1;
		}
	}
	return 0;
}

static int count_arguments(struct call *call, uint32_t *op_count, uint32_t *leg_count)
{
	Py_ssize_t legs = PyTuple_Size(call->connections);
	if (call->ops.len % FFS_OP_BYTES != 0 || call->ops.len / FFS_OP_BYTES > INT32_MAX) {
		PyErr_Format(PyExc_ValueError, "ops must hold whole operations of %d bytes", FFS_OP_BYTES);
		return -1;
	}
	if (legs > UINT16_MAX) {
		PyErr_SetString(PyExc_ValueError, "too many connections");
		return -1;
	}
	*op_count = (uint32_t)(call->ops.len / FFS_OP_BYTES);
	*leg_count = (uint32_t)legs;
	return 0;
}

/* Room for the times of a sampled call. */
static int want_times(struct call *call, PyObject *timings)
{
	struct ffs_batch *batch = &call->batch;
	if (timings == NULL || timings == Py_None)
		return 0;
	if (PyObject_GetBuffer(timings, &call->timings, PyBUF_WRITABLE) != 0)
		return -1;
	if ((size_t)call->timings.len != (size_t)batch->op_count * FFS_TIMING_BYTES) {
		PyErr_Format(PyExc_ValueError, "timings must hold %u bytes for each operation",
		             FFS_TIMING_BYTES);
		return -1;
	}
	batch->timings = ffs_sys_calloc((size_t)batch->op_count + 1, FFS_TIMING_BYTES);
	if (batch->timings == NULL) {
		PyErr_NoMemory();
		return -1;
	}
	return 0;
}

/* The caller's memory: a buffer, or, for reads, a device's, which the caller's reference keeps. */
static int take_memory(struct call *call, const struct ffs_module_state *state, PyObject *memory,
                       bool verify)
{
	struct ffs_batch *batch = &call->batch;
	if (batch->kind != FFS_OP_READ)
		return PyObject_GetBuffer(memory, &call->memory, PyBUF_SIMPLE);
	batch->device = ffs_device_memory_of(state, memory);
	if (batch->device == NULL)
		return PyObject_GetBuffer(memory, &call->memory, PyBUF_WRITABLE);
	call->memory.buf = batch->device->memory;
	call->memory.len = (Py_ssize_t)batch->device->bytes;
	if (!verify)
		return 0;
	PyErr_SetString(PyExc_ValueError, "what lands in a device's memory cannot be verified");
	return -1;
}

/* Everything before the first byte is sent. */
static int prepare(struct call *call, PyObject *module, PyObject *connections, PyObject *ops,
                   PyObject *memory, const struct options *options)
{
	struct ffs_module_state *state = PyModule_GetState(module);
	uint32_t op_count, leg_count, bad = 0;
	call->connections = PySequence_Tuple(connections);
	if (call->connections == NULL || PyObject_GetBuffer(ops, &call->ops, PyBUF_WRITABLE) != 0 ||
	    take_memory(call, state, memory, options->verify != 0) != 0 ||
	    count_arguments(call, &op_count, &leg_count) != 0)
		return -1;
	if (ffs_batch_init(&call->batch, op_count, leg_count) != 0) {
		PyErr_NoMemory();
		return -1;
	}
	const char *fault =
		ffs_plan(&call->batch, call->ops.buf, call->memory.buf, (size_t)call->memory.len, &bad);
	if (fault != NULL) {
		PyErr_Format(PyExc_ValueError, "operation %u: %s", (unsigned int)bad, fault);
		return -1;
	}
	if (take_stalls(call, options->stall_ms) != 0 || want_times(call, options->timings) != 0)
		return -1;
	return claim_connections(call, state->connection_type);
}

static void finish(struct call *call)
{
	for (uint32_t i = 0; i < call->claimed; i++)
		if (call->batch.legs[i].conn != NULL)
			ffs_conn_release(call->batch.legs[i].conn);
	ffs_batch_fini(&call->batch);
	if (call->timings.obj != NULL)
		PyBuffer_Release(&call->timings);
	if (call->memory.obj != NULL)
		PyBuffer_Release(&call->memory);
	if (call->ops.obj != NULL)
		PyBuffer_Release(&call->ops);
	Py_XDECREF(call->connections);
}

/* The engine asks now and then: run signal handlers, which may raise. */
static int run_signal_handlers(void *context)
{
	struct call *call = context;
	PyEval_RestoreThread(call->thread);
	int raised = PyErr_CheckSignals();
	call->thread = PyEval_SaveThread();
	return raised;
}

static PyObject *run(struct call *call, const struct options *options)
{
	struct ffs_batch *batch = &call->batch;
	batch->verify = batch->kind == FFS_OP_READ && options->verify;
	batch->trace_id = options->trace_id;
	batch->interrupted = run_signal_handlers;
	batch->context = call;
	call->thread = PyEval_SaveThread();
	batch->shared = &call->shared;
	atomic_init(&call->shared.hedge_budget, options->hedge_ranges);
	atomic_init(&call->shared.stop, false);
	ffs_batch_start_clock(batch, options->deadline_ms, options->hedge_ms);
	ffs_share_out(batch);
	int stopped = ffs_team_drive(batch, options->thread_bytes);
	PyEval_RestoreThread(call->thread);
	ffs_counters_add(&batch->counts);
	if (batch->kind == FFS_OP_READ)
		ffs_counters_note_read(batch);
	if (batch->timings != NULL)
		memcpy(call->timings.buf, batch->timings, (size_t)call->timings.len);
	uint32_t good = ffs_plan_results(batch, call->ops.buf);
	return stopped != 0 ? NULL : PyLong_FromUnsignedLong(good);
}

static PyObject *run_call(PyObject *module, enum ffs_op kind, PyObject *connections, PyObject *ops,
                          PyObject *memory, const struct options *options)
{
	struct call call = {.batch = {.kind = kind}};
	PyObject *result = NULL;
	if (check_options(options) == 0 &&
	    prepare(&call, module, connections, ops, memory, options) == 0)
		result = run(&call, options);
	finish(&call);
	return result;
}

static PyObject *read_batch(PyObject *module, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"connections", "ops",          "out",          "deadline_ms",
	                        "stall_ms",    "hedge_ms",     "hedge_ranges", "verify",
	                        "trace_id",    "thread_bytes", "timings",      NULL};
	PyObject *connections, *ops, *out;
	struct options options = {.verify = 1};
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|$LOLIpKKO:read_batch", names, &connections,
	                                 &ops, &out, &options.deadline_ms, &options.stall_ms,
	                                 &options.hedge_ms, &options.hedge_ranges, &options.verify,
	                                 &options.trace_id, &options.thread_bytes, &options.timings))
		return NULL;
	return run_call(module, FFS_OP_READ, connections, ops, out, &options);
}

static PyObject *write_batch(PyObject *module, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"connections", "ops",      "data", "deadline_ms",
	                        "stall_ms",    "trace_id", NULL};
	PyObject *connections, *ops, *data;
	struct options options = {0};
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|$LOK:write_batch", names, &connections,
	                                 &ops, &data, &options.deadline_ms, &options.stall_ms,
	                                 &options.trace_id))
		return NULL;
	return run_call(module, FFS_OP_WRITE, connections, ops, data, &options);
}

PyMethodDef ffs_batch_methods[] = {
	{"read_batch", (PyCFunction)(void (*)(void))read_batch, METH_VARARGS | METH_KEYWORDS,
     "Run READ operations straight into `out`. See ffs/_reader.pyi."},
	{"write_batch", (PyCFunction)(void (*)(void))write_batch, METH_VARARGS | METH_KEYWORDS,
     "Send whole chunks from `data`. See ffs/_reader.pyi."},
	{NULL, NULL, 0, NULL},
};
