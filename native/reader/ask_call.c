/* See ask_call.h. */
#include "reader/ask_call.h"

#include "reader/batch.h"

#define MS_MAX INT64_C(0x7fffffff)

static int run_signal_handlers(void *context)
{
	struct ffs_ask_call *call = context;
	PyEval_RestoreThread(call->thread);
	int raised = PyErr_CheckSignals();
	call->thread = PyEval_SaveThread();
	return raised;
}

int ffs_ask_call_claim(struct ffs_ask_call *call, PyObject *module, PyObject *connection,
                       long long deadline_ms)
{
	struct ffs_module_state *state = PyModule_GetState(module);
	if (!Py_IS_TYPE(connection, (PyTypeObject *)state->connection_type)) {
		PyErr_SetString(PyExc_TypeError, "connection must be a Connection");
		return -1;
	}
	if (deadline_ms < 1 || deadline_ms > MS_MAX) {
		PyErr_SetString(PyExc_ValueError, "deadline_ms must be from 1 to 2**31 - 1");
		return -1;
	}
	struct ffs_conn *conn = &((struct ffs_connection_object *)connection)->conn;
	switch (ffs_conn_claim(conn)) {
	case FFS_CONN_CLAIMED:
		call->ask.conn = conn;
		call->ask.deadline_ns = ffs_now_ns() + deadline_ms * 1000000;
		call->ask.interrupted = run_signal_handlers;
		call->ask.context = call;
		return 0;
	case FFS_CONN_DEAD:
		return 1;
	case FFS_CONN_IN_USE:
		PyErr_SetString(PyExc_BlockingIOError, "connection is in use by another call");
		return -1;
	default:
		PyErr_NoMemory();
		return -1;
	}
}

void ffs_ask_call_begin(struct ffs_ask_call *call)
{
	call->thread = PyEval_SaveThread();
}

int ffs_ask_call_end(struct ffs_ask_call *call)
{
	PyEval_RestoreThread(call->thread);
	ffs_counters_add(&call->ask.counts);
	return PyErr_Occurred() != NULL ? -1 : 0;
}
