/* list_chunks and suspect: what daemons and readers ask of daemons. See ffs/_reader.pyi. */
#include <string.h>

#include "reader/ask_call.h"

#define DEADLINE_MS_DEFAULT 10000

/* Ask; -1 if a signal handler has raised. */
static int run(struct ffs_ask_call *call, enum ffs_status *status)
{
	ffs_ask_call_begin(call);
	*status = ffs_ask(&call->ask);
	return ffs_ask_call_end(call);
}

/* -------------------------------------------------------------------------------------- LIST */

/* What was asked for, as a LIST's descriptor has it. */
static PyObject *list_page(struct ffs_ask_call *call, const struct ffs_read_descriptor *wanted)
{
	struct ffs_scratch *scratch = call->ask.conn->scratch;
	enum ffs_status status;
	ffs_read_descriptor_pack(scratch->send + FFS_ASK_BODY_AT, wanted);
	if (run(call, &status) != 0)
		return NULL;
	uint32_t bytes = status == FFS_OK ? call->ask.answer.payload_bytes : 0;
	if (!ffs_ask_page_is_right(scratch->body, bytes, wanted->blob, wanted->chunk)) {
		ffs_conn_revoke(call->ask.conn);
		status = FFS_ERR_PROTOCOL;
		bytes = 0;
	}
	return Py_BuildValue("(iy#)", (int)status, (const char *)scratch->body, (Py_ssize_t)bytes);
}

static PyObject *list_chunks(PyObject *module, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"connection",    "target",      "after_blob", "after_chunk", "limit",
	                        "chain_version", "deadline_ms", "trace_id",   NULL};
	PyObject *connection;
	unsigned int target, after_chunk, limit, chain_version;
	unsigned long long after_blob, trace_id = 0;
	long long deadline_ms = DEADLINE_MS_DEFAULT;
	struct ffs_ask_call call = {0};
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OIKIII|$LK:list_chunks", names, &connection,
	                                 &target, &after_blob, &after_chunk, &limit, &chain_version,
	                                 &deadline_ms, &trace_id))
		return NULL;
	if (limit < 1 || limit > FFS_LIST_CHUNKS_MAX)
		return PyErr_Format(PyExc_ValueError, "limit must be from 1 to %u", FFS_LIST_CHUNKS_MAX);
	int claimed = ffs_ask_call_claim(&call, module, connection, deadline_ms);
	if (claimed != 0)
		return claimed < 0 ? NULL
		                   : Py_BuildValue("(iy#)", FFS_ERR_CONNECTION_LOST, "", (Py_ssize_t)0);
	call.ask.payload_bytes_max = limit * FFS_ASK_KEY_BYTES;
	call.ask.request = (struct ffs_header){
		.op = FFS_OP_LIST,
		.count = 1,
		.trace_id = trace_id,
		.chain_version = chain_version,
		.body_bytes = FFS_READ_DESCRIPTOR_BYTES,
	};
	struct ffs_read_descriptor wanted = {
		.blob = after_blob, .chunk = after_chunk, .target = target, .offset = limit};
	PyObject *result = list_page(&call, &wanted);
	ffs_conn_release(call.ask.conn);
	return result;
}

/* ----------------------------------------------------------------------------------- SUSPECT */

static PyObject *tell(PyObject *module, PyObject *connection, const Py_buffer *descriptors,
                      long long deadline_ms, unsigned long long trace_id)
{
	struct ffs_ask_call call = {0};
	size_t bytes = (size_t)descriptors->len;
	size_t count = bytes / FFS_READ_DESCRIPTOR_BYTES;
	if (bytes % FFS_READ_DESCRIPTOR_BYTES != 0 || count < 1 || count > FFS_SUSPECT_CHUNKS_MAX)
		return PyErr_Format(PyExc_ValueError, "descriptors must be 1 to %u of %u bytes",
		                    FFS_SUSPECT_CHUNKS_MAX, FFS_READ_DESCRIPTOR_BYTES);
	int claimed = ffs_ask_call_claim(&call, module, connection, deadline_ms);
	if (claimed != 0)
		return claimed < 0 ? NULL : PyLong_FromLong(FFS_ERR_CONNECTION_LOST);
	call.ask.request = (struct ffs_header){
		.op = FFS_OP_SUSPECT,
		.count = (uint16_t)count,
		.trace_id = trace_id,
		.body_bytes = (uint32_t)bytes,
	};
	memcpy(call.ask.conn->scratch->send + FFS_ASK_BODY_AT, descriptors->buf, bytes);
	enum ffs_status status;
	int raised = run(&call, &status);
	ffs_conn_release(call.ask.conn);
	return raised != 0 ? NULL : PyLong_FromLong((long)status);
}

static PyObject *suspect(PyObject *module, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"connection", "descriptors", "deadline_ms", "trace_id", NULL};
	PyObject *connection, *object;
	long long deadline_ms = DEADLINE_MS_DEFAULT;
	unsigned long long trace_id = 0;
	Py_buffer descriptors;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$LK:suspect", names, &connection, &object,
	                                 &deadline_ms, &trace_id) ||
	    PyObject_GetBuffer(object, &descriptors, PyBUF_SIMPLE) != 0)
		return NULL;
	PyObject *result = tell(module, connection, &descriptors, deadline_ms, trace_id);
	PyBuffer_Release(&descriptors);
	return result;
}

/* ------------------------------------------------------------------------------------- GRANT */

static PyObject *present(PyObject *module, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"connection", "grant", "count", "deadline_ms", NULL};
	PyObject *connection;
	const char *grant;
	Py_ssize_t bytes;
	unsigned int count;
	long long deadline_ms = DEADLINE_MS_DEFAULT;
	struct ffs_ask_call call = {0};
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Oy#I|$L:present", names, &connection, &grant,
	                                 &bytes, &count, &deadline_ms))
		return NULL;
	if (bytes > (Py_ssize_t)(FFS_FRAME_DESCRIPTORS_MAX * FFS_READ_DESCRIPTOR_BYTES) ||
	    count > UINT16_MAX)
		return PyErr_Format(PyExc_ValueError, "a grant is shorter");
	int claimed = ffs_ask_call_claim(&call, module, connection, deadline_ms);
	if (claimed != 0)
		return claimed < 0 ? NULL : PyLong_FromLong(FFS_ERR_CONNECTION_LOST);
	call.ask.request = (struct ffs_header){
		.op = FFS_OP_GRANT, .count = (uint16_t)count, .body_bytes = (uint32_t)bytes};
	memcpy(call.ask.conn->scratch->send + FFS_ASK_BODY_AT, grant, (size_t)bytes);
	call.ask.unanswered = true;
	enum ffs_status status;
	int raised = run(&call, &status);
	ffs_conn_release(call.ask.conn);
	return raised != 0 ? NULL : PyLong_FromLong((long)status);
}

PyMethodDef ffs_ask_methods[] = {
	{"present", (PyCFunction)(void (*)(void))present, METH_VARARGS | METH_KEYWORDS,
     "Show a daemon what we may read and write. See ffs/_reader.pyi."},
	{"list_chunks", (PyCFunction)(void (*)(void))list_chunks, METH_VARARGS | METH_KEYWORDS,
     "A page of what a target has. See ffs/_reader.pyi."},
	{"suspect", (PyCFunction)(void (*)(void))suspect, METH_VARARGS | METH_KEYWORDS,
     "Tell a daemon which chunks were missing or wrong. See ffs/_reader.pyi."},
	{NULL, NULL, 0, NULL},
};
